"""Making room: of a run that ended long ago, most steps are removed, and a curve's worth of them stays.

Nothing is numbered anew: the events that stay keep their numbers, and a reader who comes back with the number of one
that is gone goes on behind it. All other kinds of events stay.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlmodel import Session, col, delete, select, update

from jobs.tables import ENDED_AND_WHOLE, Event, Job

KEPT_STEPS = 1000
"""About as many as a chart has pixels."""

ENDS = 20
"""So many events at both ends of a log stay: the first and the last of a curve say the most."""

CHUNK = 10_000


def thin(session: Session, before: float, *, chunk: int = CHUNK, kept_steps: int = KEPT_STEPS) -> bool:
    """Thin a stretch of the logs of jobs that ended before a moment, those that ended first.

    Args:
        before: Unix seconds.
        chunk: As many events are looked at, since other writers may have to wait for this transaction.
        kept_steps: At least about this many steps of each run stay, and about twice as many at most.

    Returns:
        Whether there was anything to do, so that there may be more.
    """
    # By the steps that were made: those that were planned may be ten million until epochs are counted, and a run may
    # end long before them.
    whole = select(Job.id, col(Job.step) - col(Job.start_step), Job.thinned_seq, Job.last_seq)
    whole = whole.where(text(ENDED_AND_WHOLE), col(Job.finished_at) < before).order_by(col(Job.finished_at)).limit(100)
    found = session.exec(whole.with_for_update(skip_locked=True)).all()
    for job in found:
        if chunk <= 0:
            break
        chunk -= _thin_stretch(session, job, chunk, kept_steps)
    return bool(found)


def _thin_stretch(session: Session, job: tuple[str, int, int, int], chunk: int, kept_steps: int) -> int:
    job_id, num_made, begin, last_seq = job
    end = min(last_seq, begin + chunk)
    stride = num_made // kept_steps
    if stride > 1:
        in_stretch = (col(Event.job_id) == job_id, col(Event.seq) > max(begin, ENDS), col(Event.seq) <= end)
        is_surplus = (col(Event.kind) == "step", col(Event.seq) % stride != 0, col(Event.seq) <= last_seq - ENDS)
        session.exec(delete(Event).where(*in_stretch, *is_surplus))
    session.exec(update(Job).where(col(Job.id) == job_id).values(thinned_seq=end))
    return end - begin
