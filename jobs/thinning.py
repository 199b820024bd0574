"""Making room: of a run that ended long ago, most steps are removed, and a curve's worth of them stays.

Nothing is numbered anew: the events that stay keep their numbers, and a reader who comes back with the number of one
that is gone goes on behind it. All other kinds of events stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, text
from sqlmodel import Session, col, delete, select, update

from jobs.tables import ENDED_AND_WHOLE, Event, Job

KEPT_STEPS = 1000
"""About as many as a chart has pixels."""


def thin(session: Session, before: float, *, limit: int = 10, kept_steps: int = KEPT_STEPS) -> Sequence[str]:
    """Thin the logs of some jobs that ended before a moment, those that ended first; their ids.

    Args:
        before: Unix seconds.
        limit: So many jobs at most, since the transaction keeps other writers waiting.
        kept_steps: At least this many steps of each stay, and fewer than twice as many.
    """
    whole = select(Job.id).where(text(ENDED_AND_WHOLE), col(Job.finished_at) < before)
    job_ids = session.exec(whole.order_by(col(Job.finished_at)).limit(limit).with_for_update(skip_locked=True)).all()
    for job_id in job_ids:
        _thin_one(session, job_id, kept_steps)
    return job_ids


def _thin_one(session: Session, job_id: str, kept_steps: int) -> None:
    steps = (col(Event.job_id) == job_id, col(Event.kind) == "step")
    num_steps = session.exec(select(func.count()).select_from(Event).where(*steps)).one()
    stride = num_steps // kept_steps
    if stride > 1:
        place = func.row_number().over(order_by=col(Event.seq)).label("place")
        numbered = select(col(Event.seq).label("seq"), place).where(*steps).subquery()
        # The first and the last of a curve say the most.
        surplus = select(numbered.c.seq).where(numbered.c.place % stride != 1, numbered.c.place != num_steps)
        session.exec(delete(Event).where(*steps, col(Event.seq).in_(surplus)))
    session.exec(update(Job).where(col(Job.id) == job_id).values(thinned_seq=col(Job.last_seq)))
