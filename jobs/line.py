"""The line of those who wait: who is next after whom, and putting one in front of another.

First comes the higher priority, then the earlier place (`Job.seq`). Places are swapped among those who wait and never
made up, so each stays one job's alone.
"""

from __future__ import annotations

from sqlalchemy import and_, update
from sqlmodel import Session, SQLModel, col, or_, select

from jobs.catalog import get_job
from jobs.errors import JobBusy
from jobs.queue import locked
from jobs.tables import Job, State
from jobs.turns import LINE, take_turn


def waiting(session: Session, owner: str, limit: int, after: str | None = None) -> tuple[list[Job], bool]:
    """A page of the jobs in line, the next one first, and whether there are more; some may not be due yet.

    Raises:
        JobNotFound: there is no job `after`.
    """
    query = select(Job).where(Job.state == State.QUEUED, Job.owner == owner)
    if after is not None:
        last = get_job(session, owner, after)
        is_behind = and_(col(Job.priority) == last.priority, col(Job.seq) > last.seq)
        query = query.where(or_(col(Job.priority) < last.priority, is_behind))
    jobs = session.exec(query.order_by(col(Job.priority).desc(), col(Job.seq)).limit(limit + 1)).all()
    return list(jobs[:limit]), len(jobs) > limit


def move_before(session: Session, job: Job, other: Job) -> Job:
    """Put a waiting job in front of another; it takes over that one's priority, and those between move up by a place.

    Raises:
        JobBusy: one of the two does not wait in line.
    """
    take_turn(session, LINE)
    job, other = locked(session, job), locked(session, other)
    for one in (job, other):
        if one.state is not State.QUEUED:
            raise JobBusy(f"Job {one.id} is {one.state}; only jobs that wait in line can be moved.")
    if job.id == other.id:
        return job
    lane = (Job.state == State.QUEUED, Job.priority == other.priority, Job.id != job.id)
    others = session.exec(select(Job.id, Job.seq).where(*lane).order_by(col(Job.seq)).with_for_update()).all()
    wanted = [name for name, _ in others]
    wanted.insert(wanted.index(other.id), job.id)
    _take_places(session, {**dict(others), job.id: job.seq}, wanted)
    job.priority = other.priority
    session.add(job)
    session.flush()
    session.refresh(job)
    return job


def _take_places(session: Session, places: dict[str, int], wanted: list[str]) -> None:
    """Deal the same places out again, in the order that is wanted."""
    moves = [
        (name, place) for name, place in zip(wanted, sorted(places.values()), strict=True) if places[name] != place
    ]
    # A place is one job's alone at any time, so all of them step aside first.
    for sign in (-1, 1):
        for name, place in moves:
            table = SQLModel.metadata.tables["job"]
            session.connection().execute(update(table).where(table.c.id == name).values(seq=sign * place))
