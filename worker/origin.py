"""Where an attempt begins: at the job's own newest checkpoint, at the one that it resumes, or at nothing.

Only what verifies is begun from; else the one before it, and the job's log says so.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from core.checkpointing import CheckpointStore, first_whole, verify
from core.disk import Meanwhile
from core.errors import CheckpointCorrupt, CheckpointNotFound
from core.manifest import Checkpoint, read_manifest
from core.resume_rules import ResumeMode
from jobs import shelf
from jobs.catalog import checkpoint_ids, earlier_of_run
from jobs.database import Database
from jobs.tables import Checkpoint as Row
from jobs.tables import Job
from worker.removal import discard
from worker.tenure import Tenure


@dataclass(frozen=True, slots=True)
class Origin:
    """The job's own checkpoint or, if it has none, the one that it resumes; both None for a run from the beginning."""

    own: Checkpoint | None = None
    parent: Checkpoint | None = None


def find_origin(db: Database, store: CheckpointStore, tenure: Tenure) -> Origin:
    """Find out how far the job has come, by what is on the disk: a worker may have died before it could say so.

    Raises:
        CheckpointNotFound, CheckpointCorrupt: the job resumes one that cannot be read, and none before it can be.
        LeaseLost, LedgerUnavailable: see `Tenure`.
    """
    job = tenure.job
    store.sweep(job.id)
    mine = _left_of(db, store, job)
    own, broken = first_whole(mine, tenure.renew_if_due)
    sound = mine[len(broken) :]
    with db.read() as session:
        known = checkpoint_ids(session, job.id)
    tenure.lost = known - {item.manifest.id for item in sound}
    # A damaged one is not said: what is said last would be the job's newest.
    for item in reversed(sound):
        if item.manifest.id not in known:
            tenure.say("checkpoint", _said_of(item))
    for error in broken:
        tenure.say("warning", {"message": f"{error.message}; it is passed over"})
    if own is not None or job.parent_checkpoint is None:
        return Origin(own=own)
    return Origin(parent=_resumed(db, store, tenure, job.parent_checkpoint))


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
            with suppress(CheckpointCorrupt):
                verify(item, tenure.renew_if_due)
                tenure.say("checkpoint", _said_of(item))


def _left_of(db: Database, store: CheckpointStore, job: Job) -> list[Checkpoint]:
    """The job's checkpoints, the furthest first; the folders of those that were marked as gone are removed first."""
    mine = store.of_job(job.id)
    with db.read() as session:
        marked = shelf.removed_names(session, [item.path.name for item in mine])
    discard(store, sorted(marked))
    return [item for item in mine if item.path.name not in marked]


def _resumed(db: Database, store: CheckpointStore, tenure: Tenure, checkpoint_id: str) -> Checkpoint:
    """The checkpoint that the job resumes or, if that one is damaged, the newest whole one that its run made before."""
    with db.read() as session:
        parent = session.get(Row, checkpoint_id)
        if parent is None:
            raise CheckpointNotFound(f"checkpoint '{checkpoint_id}', which this job resumes, is gone")
        rows = [parent, *earlier_of_run(session, parent)]
    broken: list[CheckpointCorrupt] = []
    for row in rows:
        try:
            found = _verified(store, row, tenure.renew_if_due)
        except CheckpointCorrupt as error:
            broken.append(error)
            continue
        if broken:
            _start_instead(tenure, row, broken[0])
        return found
    raise CheckpointCorrupt(f"{broken[0].message}; no earlier one of its run is whole: resume another checkpoint")


def _verified(store: CheckpointStore, row: Row, meanwhile: Meanwhile) -> Checkpoint:
    if row.removed_at is not None:
        raise CheckpointCorrupt(f"checkpoint '{row.name}' was removed")
    try:
        found = read_manifest(store.root / row.path)
    except CheckpointNotFound:
        raise CheckpointCorrupt(f"the folder of checkpoint '{row.name}' is gone from the disk") from None
    verify(found, meanwhile)
    return found


def _start_instead(tenure: Tenure, row: Row, error: CheckpointCorrupt) -> None:
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
