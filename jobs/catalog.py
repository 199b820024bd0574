"""Finding and listing jobs and checkpoints.

Each question is asked for an owner: what belongs to another is not there.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import func, tuple_
from sqlmodel import Session, col, delete, or_, select
from sqlmodel.sql.expression import SelectOfScalar

from core.errors import CheckpointNotFound
from jobs import postgres, sqlite
from jobs.errors import CheckpointRemoved, JobBusy, JobNotFound
from jobs.tables import FINAL, Checkpoint, Event, Job, Removal, State
from jobs.turns import SHELF, take_turn

Order = Literal["newest", "best"]


def get_job(session: Session, owner: str, job_id: str) -> Job:
    """One job.

    Raises:
        JobNotFound: it does not exist, or is another's.
    """
    job = session.exec(select(Job).where(Job.id == job_id, Job.owner == owner)).one_or_none()
    if job is None:
        raise JobNotFound(job_id)
    return job


def list_jobs(
    session: Session,
    owner: str,
    limit: int,
    after: str | None = None,
    *,
    states: Collection[State] = (),
    source: str | None = None,
    model: str | None = None,
    metadata: Mapping[str, str] | None = None,
) -> tuple[list[Job], bool]:
    """A page of jobs, newest first, and whether there are more.

    Args:
        after: Id of the last job of the page before.
        states: Any of these; all if empty.
        model: A `model_type`.
        metadata: Each of these keys has this value.

    Raises:
        JobNotFound: there is no job `after`.
    """
    query = select(Job).where(Job.owner == owner)
    if states:
        query = query.where(col(Job.state).in_(states))
    if source is not None:
        query = query.where(Job.source == source)
    if model is not None:
        query = query.where(Job.model_type == model)
    json_has = postgres.json_has if session.get_bind().dialect.name == "postgresql" else sqlite.json_has
    for key, value in (metadata or {}).items():
        query = query.where(json_has(col(Job.meta), key, value))
    if after is not None:
        last = get_job(session, owner, after)
        query = query.where(tuple_(col(Job.created_at), col(Job.id)) < (last.created_at, last.id))
    query = query.order_by(col(Job.created_at).desc(), col(Job.id).desc())
    jobs = session.exec(query.limit(limit + 1)).all()
    return list(jobs[:limit]), len(jobs) > limit


def delete_job(session: Session, job: Job) -> None:
    """Remove a finished job and its events; its checkpoints stay, and lose only their tie to it.

    Raises:
        JobBusy: the job is not final.
        JobNotFound: it is gone.
    """
    check_ended(job)
    # First the turn, then the row: see `jobs.shelf`.
    take_turn(session, SHELF)
    found = session.get(Job, job.id, populate_existing=True, with_for_update=True)
    if found is None:
        raise JobNotFound(job.id)
    session.delete(found)
    session.flush()


def check_ended(job: Job) -> None:
    """Return if a job has come to its end, which it never leaves again.

    Raises:
        JobBusy: it has not.
    """
    if job.state not in FINAL:
        raise JobBusy(f"Job {job.id} is {job.state}; cancel it before you delete it.")


def delete_events(session: Session, job: Job, up_to_seq: int) -> None:
    """Remove a job's events up to that number, since a long log in one piece would keep other writers waiting."""
    session.exec(delete(Event).where(col(Event.job_id) == job.id, col(Event.seq) <= up_to_seq))


def find_checkpoint(session: Session, owner: str, ref: str) -> Checkpoint:
    """The checkpoint of that id or name, or the only one whose id or name begins like that.

    Raises:
        CheckpointRemoved: it is gone; says when, why, and what is near.
        CheckpointNotFound: there is none, or more than one.
    """
    row = _find(session, owner, ref)
    if row.removed_at is not None:
        raise removal_of(session, row)
    return row


def removal_of(session: Session, row: Checkpoint) -> CheckpointRemoved:
    """What to tell whoever asks for a checkpoint that is gone."""
    assert row.removed_at is not None
    moment = datetime.fromtimestamp(row.removed_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    cause = "newer ones of its run superseded it" if row.removed_because is Removal.SUPERSEDED else "it was deleted"
    said = f"Checkpoint {row.id} (step {row.step}) was removed on {moment}: {cause}"
    same_run = (Checkpoint.owner == row.owner, Checkpoint.run == row.run, col(Checkpoint.removed_at).is_(None))
    near = session.exec(furthest_first(select(Checkpoint).where(*same_run)).limit(1)).first()
    if row.run is None or near is None:
        return CheckpointRemoved(f"{said}; nothing of its run is left.")
    return CheckpointRemoved(f"{said}; the newest of its run is {near.id} (step {near.step}).")


def _find(session: Session, owner: str, ref: str) -> Checkpoint:
    """The same, also of one that is gone; a beginning finds one that is there first."""
    mine = select(Checkpoint).where(Checkpoint.owner == owner)
    exact = session.exec(mine.where(or_(Checkpoint.id == ref, Checkpoint.name == ref))).first()
    if exact is not None:
        return exact
    # Not BETWEEN, which goes by the server's own alphabet, nor LIKE, which has its own idea of letters.
    begins = or_(*(func.substr(column, 1, len(ref)) == ref for column in (col(Checkpoint.id), col(Checkpoint.name))))
    for state in (col(Checkpoint.removed_at).is_(None), col(Checkpoint.removed_at).is_not(None)):
        found = session.exec(mine.where(begins, state).limit(2)).all() if ref else []
        if len(found) == 1:
            return found[0]
        if found:
            raise CheckpointNotFound(f"Several checkpoints begin with {ref!r}, like {found[0].id} and {found[1].id}.")
    raise CheckpointNotFound(f"There is no checkpoint {ref!r}; GET /checkpoints lists those at hand.")


def list_checkpoints(
    session: Session,
    owner: str,
    limit: int,
    after: str | None = None,
    *,
    job_id: str | None = None,
    source: str | None = None,
    model: str | None = None,
    order: Order = "newest",
) -> tuple[list[Checkpoint], bool]:
    """A page of checkpoints, and whether there are more.

    Args:
        after: Id of the last checkpoint of the page before; it may have been removed since.
        order: `newest` first, or `best` (lowest validation loss) first; those without a loss come last.

    Raises:
        CheckpointNotFound: there is no checkpoint `after`.
    """
    query = select(Checkpoint).where(Checkpoint.owner == owner, col(Checkpoint.removed_at).is_(None))
    if job_id is not None:
        query = query.where(Checkpoint.job_id == job_id)
    if source is not None:
        query = query.where(Checkpoint.source == source)
    if model is not None:
        query = query.where(Checkpoint.model == model)
    last = _find(session, owner, after) if after is not None else None
    rows = session.exec(_in_order(query, order, last).limit(limit + 1)).all()
    return list(rows[:limit]), len(rows) > limit


def latest_checkpoint(session: Session, job_id: str) -> Checkpoint | None:
    """The checkpoint of this job with the most steps behind it; of equals, the one made last."""
    return next(iter(checkpoints_of(session, job_id, limit=1)), None)


def checkpoints_of(session: Session, job_id: str, limit: int | None = None) -> list[Checkpoint]:
    """A job's checkpoints, those with the most steps behind them first."""
    kept = select(Checkpoint).where(Checkpoint.job_id == job_id, col(Checkpoint.removed_at).is_(None))
    return list(session.exec(furthest_first(kept).limit(limit)).all())


def earlier_of_run(session: Session, checkpoint: Checkpoint) -> list[Checkpoint]:
    """Those that the same run made before this one, those with the most steps behind them first."""
    run = (Checkpoint.owner == checkpoint.owner, Checkpoint.run == checkpoint.run, Checkpoint.step < checkpoint.step)
    kept = select(Checkpoint).where(*run, col(Checkpoint.removed_at).is_(None))
    return list(session.exec(furthest_first(kept)).all()) if checkpoint.run else []


def checkpoint_ids(session: Session, job_id: str) -> set[str]:
    """Ids of all checkpoints that the ledger knows of this job, also of those that are gone."""
    return set(session.exec(select(Checkpoint.id).where(Checkpoint.job_id == job_id)).all())


def adopt_checkpoint(session: Session, checkpoint: Checkpoint) -> bool:
    """Enter a checkpoint that was found on disk; False if its id or name is known, as is one that was removed."""
    take_turn(session, SHELF)
    known = select(Checkpoint.id).where(or_(Checkpoint.id == checkpoint.id, Checkpoint.name == checkpoint.name))
    if session.exec(known).first() is not None:
        return False
    session.add(checkpoint)
    session.flush()
    return True


def furthest_first(query: SelectOfScalar[Checkpoint]) -> SelectOfScalar[Checkpoint]:
    """By steps, and of equals the one that was made last."""
    return query.order_by(col(Checkpoint.step).desc(), col(Checkpoint.created_at).desc())


def _in_order(query: SelectOfScalar[Checkpoint], order: Order, last: Checkpoint | None) -> SelectOfScalar[Checkpoint]:
    """Sort, and leave out all that comes before `last` and `last` itself."""
    if order == "newest":
        if last is not None:
            query = query.where(tuple_(col(Checkpoint.created_at), col(Checkpoint.id)) < (last.created_at, last.id))
        return query.order_by(col(Checkpoint.created_at).desc(), col(Checkpoint.id).desc())
    unmeasured = sys.float_info.max
    loss = func.coalesce(col(Checkpoint.val_loss), unmeasured)
    if last is not None:
        reached = unmeasured if last.val_loss is None else last.val_loss
        query = query.where(tuple_(loss, col(Checkpoint.id)) > (reached, last.id))
    return query.order_by(loss, col(Checkpoint.id))
