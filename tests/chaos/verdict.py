"""What must hold after a storm, over the whole ledger and every checkpoint; each violation is a sentence."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from sqlmodel import Session, select

from core.checkpointing import verify
from core.checkpoints.manifest import read_manifest
from core.errors import CheckpointError
from jobs import feed
from jobs.catalog import latest_checkpoint
from jobs.shelf import removed_names
from jobs.tables import FINAL, HELD, TRANSITIONS, Checkpoint, Event, Job, State
from tests.chaos.storm import Storm
from tests.chaos.world import World

WEIGHTS = "model.safetensors"


def weights_of(folder: Path) -> str:
    """What tells one set of weights from another."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def violations(world: World, storm: Storm, uninterrupted: dict[int, str]) -> list[str]:
    """Everything that is not as it was promised.

    Args:
        uninterrupted: Weights at the end of a run that nobody disturbed, by the number of its configuration.
    """
    with world.ledger.read() as session:
        jobs = {job.id: job for job in session.exec(select(Job)).all()}
        found = [f"people met with: {mistake}" for mistake in storm.mistakes]
        found += [f"a process ended by itself: {death}" for death in world.unexpected]
        found += [f"{job_id} was answered with 201 and is gone" for job_id in storm.answered.keys() - jobs.keys()]
        found += [f"{job_id} was never answered" for job_id in _unexpected(jobs, storm)]
        for job in jobs.values():
            log = feed.after(session, job.id, 0, limit=1_000_000)
            found += [f"{job.id}: {said}" for said in (*_of_log(job, log), *_of_newest(session, world, job, log))]
            found += [f"{job.id}: {said}" for said in _of_end(session, world, job, storm, uninterrupted)]
        found += [f"{row.name}: {said}" for row in session.exec(select(Checkpoint)) for said in _of_folder(world, row)]
    for job_id, seen in storm.watched.items():
        if seen != list(range(1, jobs[job_id].last_seq + 1)):
            found.append(f"{job_id}: its reader saw {_holes(seen)}")
    return found


def _unexpected(jobs: dict[str, Job], storm: Storm) -> Iterator[str]:
    """A job whose answer was lost is the one that its repetition found, so no other exists."""
    keys = Counter(job.idempotency_key for job in jobs.values() if job.idempotency_key)
    for job_id, job in jobs.items():
        if keys[job.idempotency_key] > 1 or (job_id not in storm.answered and job.parent_job is None):
            yield job_id


def _of_log(job: Job, log: list[Event]) -> Iterator[str]:
    """Numbered without gap or repeat; attempts in order; only arrows of the state machine; one end."""
    if [event.seq for event in log] != list(range(1, job.last_seq + 1)):
        yield f"its events are numbered {_holes([event.seq for event in log])}, and last_seq is {job.last_seq}"
    states = [State(json.loads(event.data)["state"]) for event in log if event.kind == "state"]
    for before, after in pairwise(states):
        if after not in TRANSITIONS[before]:
            yield f"it went from {before} to {after}"
    if states[-1] is not job.state:
        yield f"its log ends {states[-1]} and it is {job.state}"
    if Counter(event.kind for event in log)["done"] != (1 if job.state in FINAL else 0):
        yield "its log does not say exactly once that it is done"
    yield from _of_steps(job, log)


def _of_steps(job: Job, log: list[Event]) -> Iterator[str]:
    """Each attempt goes on where it says that it does, step after step; no word of another one comes in between."""
    attempt, is_held, last = 0, False, job.start_step
    for event in log:
        data = json.loads(event.data)
        if event.kind == "state":
            is_held = data["state"] in HELD
            if data["state"] == "starting":
                attempt, last = event.attempt, job.start_step
        elif event.kind != "done" and (not is_held or event.attempt != attempt):
            holder = f"attempt {attempt}" if is_held else "nobody"
            yield f"event {event.seq} is of attempt {event.attempt} while {holder} holds it"
        if event.kind == "resumed":
            last = data["from_step"]
        elif event.kind == "step":
            if data["step"] != last + 1:
                yield f"event {event.seq} has step {data['step']} after step {last}"
            last = data["step"]


def _of_newest(session: Session, world: World, job: Job, log: list[Event]) -> Iterator[str]:
    """The newest checkpoint that the log speaks of is there; whether it is whole is asked of all that are."""
    said = [json.loads(event.data) for event in log if event.kind == "checkpoint"]
    row = session.get(Checkpoint, said[-1]["id"]) if said else None
    if said and (row is None or row.removed_at is not None):
        yield f"its checkpoint {said[-1]['name']} is not listed any more"


def _of_end(session: Session, world: World, job: Job, storm: Storm, uninterrupted: dict[int, str]) -> Iterator[str]:
    """It came to an end by itself, and what it has learned is what it would have learned undisturbed."""
    if job.state not in FINAL:
        yield f"it is still {job.state}"
        return
    if job.state is State.FAILED:
        yield f"it failed: {job.error}"
    if job.state is not State.SUCCEEDED:
        return
    last = latest_checkpoint(session, job.id)
    end_step = job.start_step + job.training_steps
    if last is None or last.step != end_step or job.step != end_step:
        yield f"it succeeded at step {job.step} of {end_step}, and its last checkpoint is {last and last.step}"
        return
    kind = storm.answered.get(job.id, -1)
    if kind in uninterrupted and weights_of(world.store.root / last.path) != uninterrupted[kind]:
        yield "its weights are not those of the same run undisturbed"


def _of_folder(world: World, row: Checkpoint) -> Iterator[str]:
    """What the ledger lists is there, and whole; what it says is gone is not there."""
    if row.removed_at is not None:
        if (world.store.root / row.path).exists():
            yield "it was removed, and its folder is still there"
        return
    try:
        verify(read_manifest(world.store.root / row.path))
    except CheckpointError as error:
        yield error.message


def num_half_removed(world: World) -> int:
    """Folders that a worker has yet to remove: one that was killed at it has left them to the next."""
    on_disk = {path.name for path in world.store.root.glob("checkpoint_*")}
    with world.ledger.read() as session:
        return len(removed_names(session, on_disk)) + len(list(world.store.root.glob("tmp-gone-*")))


def _holes(numbers: list[int]) -> str:
    """The first place where numbers do not follow each other."""
    for place, number in enumerate(numbers, start=1):
        if number != place:
            return f"{number} in place {place} of {len(numbers)}"
    return f"1 to {len(numbers)}"
