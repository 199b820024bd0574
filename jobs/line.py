"""The line of those who wait: who is next after whom, and putting one in front of another.

First comes the higher priority, then the earlier place. There is room between places, so that moving one job touches no
other; only when the room at a spot is used up, those who wait at that priority are spread out anew.
"""

from __future__ import annotations

from sqlalchemy import and_, bindparam, update
from sqlmodel import Session, SQLModel, col, or_, select

from jobs.catalog import get_job
from jobs.errors import JobBusy
from jobs.queue import locked
from jobs.tables import ROOM, Job, State
from jobs.turns import LINE, take_turn


def waiting(session: Session, owner: str, limit: int, after: str | None = None) -> tuple[list[Job], bool]:
    """A page of the jobs in line, the next one first, and whether there are more; some may not be due yet.

    Raises:
        JobNotFound: there is no job `after`.
    """
    query = select(Job).where(Job.state == State.QUEUED, Job.owner == owner)
    if after is not None:
        last = get_job(session, owner, after)
        is_behind = and_(col(Job.priority) == last.priority, col(Job.place) > last.place)
        query = query.where(or_(col(Job.priority) < last.priority, is_behind))
    jobs = session.exec(query.order_by(col(Job.priority).desc(), col(Job.place)).limit(limit + 1)).all()
    return list(jobs[:limit]), len(jobs) > limit


def move_before(session: Session, job: Job, other: Job) -> Job:
    """Put a waiting job in front of another; it takes over that one's priority.

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
    place = _room_before(session, other, job.id)
    if place is None:
        _spread(session, other.priority)
        session.refresh(other)
        place = _room_before(session, other, job.id)
        assert place is not None
    job.priority, job.place = other.priority, place
    session.add(job)
    session.flush()
    return job


def _room_before(session: Session, other: Job, leaving: str) -> int | None:
    """A place between another job and the one in front of it; None if there is none left."""
    lane = (Job.state == State.QUEUED, Job.priority == other.priority, Job.id != leaving)
    in_front = select(Job.place).where(*lane, col(Job.place) < other.place).order_by(col(Job.place).desc()).limit(1)
    before = session.exec(in_front).first()
    place = other.place - ROOM if before is None else (before + other.place) // 2
    return None if place == before else place


def _spread(session: Session, priority: int) -> None:
    """Give those who wait at this priority new places, with room between them again."""
    lane = select(Job.id, Job.place).where(Job.state == State.QUEUED, Job.priority == priority)
    rows = session.exec(lane.order_by(col(Job.place)).with_for_update()).all()
    table = SQLModel.metadata.tables["job"]
    statement = update(table).where(table.c.id == bindparam("whose")).values(place=bindparam("there"))
    # From where the first one stands: whoever comes later stands behind them all.
    first = rows[0][1] - ROOM * len(rows)
    session.connection().execute(
        statement, [{"whose": job_id, "there": first + ROOM * n} for n, (job_id, _) in enumerate(rows)]
    )
