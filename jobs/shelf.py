"""What may leave the shelf of checkpoints, and what has to stay: retention, pins, removals.

A checkpoint leaves in two steps: its row is marked here, which decides it, and then whoever marked it removes the
folder and notes that (`jobs.removal`). If he is killed in between, others find the row and finish his work
(`leaving_names`). That is done once: a folder that somebody puts back afterwards is not ours to remove.
Everything here takes its turn with those who enter checkpoints and with jobs that start from one, so that a job gets
its checkpoint or is refused. Who locks a job that has not ended does so before he takes that turn; a job that has ended
is locked after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from sqlalchemy import Row, text
from sqlmodel import Session, col, select, update

from core.checkpoints.resume_rules import ResumeMode
from core.checkpoints.retention import superseded
from core.config import MOST_STEPS
from jobs.catalog import checkpoints_of, latest_checkpoint, removal_of
from jobs.errors import CheckpointNeeded, CheckpointPinned
from jobs.tables import FINAL, LEAVING, Checkpoint, Job, Removal, State
from jobs.transitions import held
from jobs.turns import SHELF, take_turn

NAMES_AT_ONCE = 500

LooksWhole = Callable[[Checkpoint], bool]


def retire_superseded(
    session: Session,
    job_id: str,
    fence: int,
    keep: int,
    lost: Collection[str] = (),
    missing: Collection[str] = (),
    now: float | None = None,
) -> list[str]:
    """Mark those of a job's checkpoints that newer ones have superseded; for its holder, which has just made one.

    Args:
        keep: Latest ones to keep; 0 keeps all.
        lost: Ids of those that this attempt found damaged. They count for nothing, and go as soon as a whole one is as
            far as they were.
        missing: Ids of those that it did not find or could not read. They count for nothing either, and stay: the disk
            may give them again.

    Returns:
        Names of the marked ones, whose folders are to be removed once this is committed.

    Raises:
        LeaseLost: the caller does not hold the job.
    """
    held(session, job_id, fence)
    take_turn(session, SHELF)
    run = checkpoints_of(session, job_id)
    whole = [row for row in run if row.id not in lost and row.id not in missing]
    if not keep or not whole:
        return []
    reached = max(row.step for row in whole)
    passed = [row for row in run if row.id in lost and row.step <= reached and not row.pinned]
    leaving = [*superseded(whole, keep), *passed]
    needed = {job.parent_checkpoint for job in _starting_from(session, [row.id for row in leaving])}
    return _mark(session, [row for row in leaving if row.id not in needed], Removal.SUPERSEDED, now)


def set_pinned(session: Session, checkpoint: Checkpoint, pinned: bool) -> Checkpoint:
    """Let a checkpoint stay whatever comes after it, or no longer.

    Raises:
        CheckpointRemoved: it is gone.
    """
    row = _there(session, checkpoint)
    row.pinned = pinned
    session.add(row)
    session.flush()
    return row


def remove(session: Session, checkpoint: Checkpoint, looks_whole: LooksWhole, now: float | None = None) -> None:
    """Mark a checkpoint that a person wants to be gone; the job that made it points to the newest that is left.

    Args:
        looks_whole: Whether a run could go on from this one, as far as can be seen in no time.

    Raises:
        CheckpointRemoved: it is gone already.
        CheckpointPinned, CheckpointNeeded: it has to stay.
    """
    row = _there(session, checkpoint)
    if row.pinned:
        raise CheckpointPinned(f"Checkpoint {row.id} is pinned; DELETE /checkpoints/{row.id}/pin lets it go.")
    for starting in _starting_from(session, [row.id]):
        raise CheckpointNeeded(
            f"Job {starting.id} is {starting.state} and starts from checkpoint {row.id}; cancel that job first."
        )
    job = session.get(Job, row.job_id, populate_existing=True) if row.job_id else None
    if job is not None and job.state not in FINAL and _would_go_on_from(session, job, row, looks_whole):
        raise CheckpointNeeded(
            f"Job {job.id} is {job.state} and would go on from checkpoint {row.id}; cancel that job first."
        )
    _mark(session, [row], Removal.DELETED, now)
    if job is not None and job.checkpoint == row.id:
        _point_to_newest(session, job.id)


def remove_those_of(session: Session, job: Job, now: float | None = None) -> list[str]:
    """Mark all checkpoints of a job that has ended, but those that are pinned or that another job starts from.

    Returns:
        Their names.
    """
    take_turn(session, SHELF)
    rows = [row for row in checkpoints_of(session, job.id) if not row.pinned]
    needed = {starting.parent_checkpoint for starting in _starting_from(session, [row.id for row in rows])}
    leaving = [row for row in rows if row.id not in needed]
    names = _mark(session, leaving, Removal.DELETED, now)
    if job.checkpoint in {row.id for row in leaving}:
        _point_to_newest(session, job.id)
    return names


def leaving_names(session: Session) -> list[str]:
    """Names of checkpoints that have been removed, and whose folders may still be there."""
    return sorted(session.exec(select(Checkpoint.name).where(text(LEAVING))).all())


def set_discarded(session: Session, names: Iterable[str], now: float | None = None) -> None:
    """Note that the folders of these checkpoints, which have been removed, are gone."""
    take_turn(session, SHELF)
    moment = time.time() if now is None else now
    for some in _portions(names):
        discarded = update(Checkpoint).where(text(LEAVING), col(Checkpoint.name).in_(some)).values(discarded_at=moment)
        session.exec(discarded)


def removed_names(session: Session, names: Iterable[str]) -> set[str]:
    """Those of these names whose checkpoints have been removed: nobody begins from their folders."""
    found: set[str] = set()
    for some in _portions(names):
        gone = select(Checkpoint.name).where(col(Checkpoint.name).in_(some), col(Checkpoint.removed_at).is_not(None))
        found.update(session.exec(gone).all())
    return found


def known_names(session: Session, names: Iterable[str]) -> set[str]:
    """Those of these names that the ledger knows, of checkpoints that are there and that are gone, whoever's."""
    found: set[str] = set()
    for some in _portions(names):
        found.update(session.exec(select(Checkpoint.name).where(col(Checkpoint.name).in_(some))).all())
    return found


def start_from_instead(session: Session, job_id: str, fence: int, checkpoint: Checkpoint) -> Job:
    """Let a job that has no checkpoint of its own start from another one; it ends at the same step as before.

    Raises:
        LeaseLost: the caller does not hold the job.
        CheckpointRemoved: that one is gone.
    """
    job = held(session, job_id, fence)
    row = _there(session, checkpoint)
    if job.resume_mode != ResumeMode.WARM_START:
        # A warm start counts from 0, whatever its weights have behind them.
        job.training_steps = min(MOST_STEPS, job.training_steps + job.start_step - row.step)
        job.start_step = job.step = row.step
        job.config = {**job.config, "training_steps": job.training_steps}
    job.parent_checkpoint, job.parent_job = row.id, row.job_id
    session.add(job)
    session.flush()
    return job


def _there(session: Session, checkpoint: Checkpoint) -> Checkpoint:
    """The row as it is now, which nobody else changes until the transaction ends."""
    take_turn(session, SHELF)
    row = session.get(Checkpoint, checkpoint.id, populate_existing=True)
    assert row is not None, "rows of checkpoints stay"
    if row.removed_at is not None:
        raise removal_of(session, row)
    return row


def _starting_from(session: Session, ids: Collection[str]) -> list[Row[tuple[str, str, str | None]]]:
    """Id, state and parent of each job that cannot begin without one of these."""
    # States by name, for the index: those that have not ended are few.
    unfinished = col(Job.state).in_([state for state in State if state not in FINAL])
    starting = (unfinished, col(Job.parent_checkpoint).in_(ids), col(Job.checkpoint).is_(None))
    query = select(col(Job.id), col(Job.state), col(Job.parent_checkpoint)).where(*starting)
    return list(session.execute(query).all()) if ids else []


def _would_go_on_from(session: Session, job: Job, row: Checkpoint, looks_whole: LooksWhole) -> bool:
    if job.checkpoint == row.id:
        return True
    return next((item.id for item in checkpoints_of(session, job.id) if looks_whole(item)), None) == row.id


def _point_to_newest(session: Session, job_id: str) -> None:
    newest = latest_checkpoint(session, job_id)
    session.exec(update(Job).where(col(Job.id) == job_id).values(checkpoint=newest.id if newest else None))


def _mark(session: Session, rows: Iterable[Checkpoint], because: Removal, now: float | None) -> list[str]:
    moment = time.time() if now is None else now
    names = []
    for row in rows:
        row.removed_at, row.removed_because = moment, because
        session.add(row)
        names.append(row.name)
    session.flush()
    return names


def _portions(names: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(names)
    while some := list(islice(remaining, NAMES_AT_ONCE)):
        yield some
