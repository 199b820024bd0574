"""Where an attempt begins: at the job's own newest checkpoint, at the one that it resumes, or at nothing.

Only what verifies is begun from; else the one before it, and the job's log says so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from core.checkpointing import CheckpointStore, first_whole, verify
from core.checkpoints.manifest import Checkpoint, read_manifest
from core.checkpoints.resume_rules import ResumeMode
from core.errors import CheckpointCorrupt, CheckpointNotFound, RatchetError, StorageError
from core.machine.disk import Meanwhile
from jobs import shelf
from jobs.catalog import checkpoint_ids, checkpoints_of, earlier_of_run
from jobs.database import Database
from jobs.errors import RunUnreadable
from jobs.removal import discard
from jobs.tables import Checkpoint as Row
from jobs.tables import Job
from worker.removal import may_be_ours, remove_set_aside
from worker.tenure import Tenure


@dataclass(frozen=True, slots=True)
class Origin:
    """The job's own checkpoint or, if it has none, the one that it resumes; both None for a run from the beginning."""

    own: Checkpoint | None = None
    parent: Checkpoint | None = None


def find_origin(db: Database, store: CheckpointStore, tenure: Tenure) -> Origin:
    """Find out how far the job has come, by what is on the disk: a worker may have died before it could say so.

    A run that has checkpoints is not begun anew because none of them can be read.

    Raises:
        RunUnreadable: the job has checkpoints of its own, and none can be read.
        CheckpointCorrupt: the job resumes one that cannot be read, and none before it can be.
        CheckpointNotFound: the ledger does not know the one that it resumes.
        StorageError: the disk does not give what is needed now, and another attempt will ask it again.
        LeaseLost, LedgerUnavailable: see `Tenure`.
    """
    job = tenure.job
    store.sweep(job.id)
    mine = _left_of(db, store, job)
    with db.read() as session:
        known, rows = checkpoint_ids(session, job.id), checkpoints_of(session, job.id)
    own, broken = first_whole(mine, tenure.renew_if_due, _tolerable(tenure))
    absent = _absent(store, tenure, rows, mine, beyond=own.step if own else -1)
    _pass_over(tenure, absent | {item.manifest.id: error for item, error in zip(mine, broken, strict=False)})
    # A damaged one is not said: what is said last would be the job's newest.
    for item in reversed(mine[len(broken) :]):
        if item.manifest.id not in known:
            tenure.say("checkpoint", _said_of(item))
    if own is not None:
        return Origin(own=own)
    if rows:
        raise RunUnreadable(
            "nothing of this run can be read at the checkpoints root: bring it back and resume, or resume from another "
            "checkpoint"
        )
    return Origin(parent=_resumed(db, store, tenure, job.parent_checkpoint)) if job.parent_checkpoint else Origin()


def say_what_was_published(db: Database, store: CheckpointStore, tenure: Tenure) -> None:
    """What this attempt published and did not come to say, since it was killed or hung: it has made that progress.

    Raises:
        LeaseLost, LedgerUnavailable: see `Tenure`.
    """
    job = tenure.job
    with db.read() as session:
        known = checkpoint_ids(session, job.id)
    known |= {data["id"] for kind, data in tenure.pending if kind == "checkpoint"}
    mine = [item for item in store.of_job(job.id) if item.manifest.fence == job.fence]
    for item in reversed(mine):
        if item.manifest.id not in known:
            with suppress(CheckpointCorrupt, StorageError):
                verify(item, tenure.renew_if_due)
                tenure.say("checkpoint", _said_of(item))


def _left_of(db: Database, store: CheckpointStore, job: Job) -> list[Checkpoint]:
    """The job's checkpoints, the furthest first, without those that were marked as gone.

    Their folders are removed, unless that has been done before and somebody has put them back.
    """
    mine = [item for item in store.of_job(job.id) if may_be_ours(item.path.name)]
    with db.read() as session:
        marked = shelf.removed_names(session, [item.path.name for item in mine])
        leaving = marked.intersection(shelf.leaving_names(session))
    if leaving:
        discard(db, store, sorted(leaving))
        remove_set_aside(store)
    return [item for item in mine if item.path.name not in marked]


def _absent(
    store: CheckpointStore, tenure: Tenure, rows: list[Row], found: list[Checkpoint], beyond: int
) -> dict[str, RatchetError]:
    """What is wrong with those that the ledger lists and a look at the disk did not find, by their ids.

    Raises:
        StorageError: of one with more steps than `beyond`; see `_tolerable`.
    """
    there = {item.manifest.id for item in found}
    faults: dict[str, RatchetError] = {}
    for row in (row for row in rows if row.id not in there):
        try:
            _read(store, row)
            raise StorageError(f"checkpoint '{row.name}' could not be read a moment ago")
        except (CheckpointCorrupt, CheckpointNotFound, StorageError) as error:
            if row.step > beyond and not isinstance(error, _tolerable(tenure)):
                raise
            faults[row.id] = error
    return faults


def _tolerable(tenure: Tenure) -> tuple[type[RatchetError], ...]:
    """What makes a run go on from an earlier checkpoint: a disk that may be at fault for a moment only if it has been
    asked for the last time."""
    faults = (CheckpointCorrupt, CheckpointNotFound)
    return faults if tenure.has_another else (*faults, StorageError)


def _pass_over(tenure: Tenure, faults: dict[str, RatchetError]) -> None:
    """Damage stays, and what has it may go one day; what is only not there may come back."""
    tenure.lost = {ref for ref, error in faults.items() if isinstance(error, CheckpointCorrupt)}
    tenure.missing = faults.keys() - tenure.lost
    for error in faults.values():
        tenure.say("warning", {"message": f"{error.message}; it is passed over"})


def _resumed(db: Database, store: CheckpointStore, tenure: Tenure, checkpoint_id: str) -> Checkpoint:
    """The checkpoint that the job resumes or, if that one is damaged, the newest whole one that its run made before."""
    with db.read() as session:
        parent = session.get(Row, checkpoint_id)
        if parent is None:
            raise CheckpointNotFound(f"checkpoint '{checkpoint_id}', which this job resumes, is gone")
        rows = [parent, *earlier_of_run(session, parent)]
    broken: list[RatchetError] = []
    for row in rows:
        try:
            found = _verified(store, row, tenure.renew_if_due)
        except _tolerable(tenure) as error:
            broken.append(error)
            continue
        if broken:
            _start_instead(tenure, row, broken[0])
        return found
    raise CheckpointCorrupt(f"{broken[0].message}; no earlier one of its run is whole: resume another checkpoint")


def _verified(store: CheckpointStore, row: Row, meanwhile: Meanwhile) -> Checkpoint:
    if row.removed_at is not None:
        raise CheckpointCorrupt(f"checkpoint '{row.name}' was removed")
    found = _read(store, row)
    verify(found, meanwhile)
    return found


def _read(store: CheckpointStore, row: Row) -> Checkpoint:
    try:
        return read_manifest(store.root / row.path)
    except CheckpointNotFound:
        if not store.root.is_dir():
            raise StorageError("the checkpoints root is not there") from None
        raise CheckpointNotFound(f"the folder of checkpoint '{row.name}' is gone from the disk") from None


def _start_instead(tenure: Tenure, row: Row, error: RatchetError) -> None:
    """Put right where the job starts, and say so, before its process is told."""
    job = tenure.job
    instead = f"the run goes on from '{row.name}' at step {row.step} instead"
    if job.resume_mode == ResumeMode.WARM_START:
        instead = f"the run takes its weights from '{row.name}' at step {row.step} instead"
    tenure.say("warning", {"message": f"{error.message}; {instead}"})
    tenure.amend(partial(shelf.start_from_instead, job_id=job.id, fence=job.fence, checkpoint=row))


def _said_of(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "step": manifest.step,
        "id": manifest.id,
        "name": manifest.name,
        "size_bytes": manifest.size_bytes,
        "train_loss": manifest.train_loss,
        "val_loss": manifest.val_loss,
    }
