"""What people and the dispatcher do with jobs: put them in line, take the next one, hold them back, call them off."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from sqlalchemy import bindparam, func, or_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import aliased
from sqlalchemy.sql.dml import ReturningUpdate
from sqlmodel import Session, col, select, update
from sqlmodel.sql.expression import SelectOfScalar

from jobs.catalog import removal_of
from jobs.errors import IdempotencyConflict, IllegalTransition, JobBusy, JobNotFound
from jobs.tables import FINAL, HELD, ROOM, Checkpoint, Job, State, Stop
from jobs.transitions import RETURN_FRESH, announce, insert_events, transition
from jobs.turns import LINE, SHELF, take_turn

MAX_RETRY_SECONDS = 60.0
"""As long as a failed job waits at most before its next attempt."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A run to put in line. `config` has every hyperparameter; `request_hash` tells a repeated request from another
    one under the same `idempotency_key`; `run_after` is in unix seconds; `warning` is said in the job's log."""

    name: str
    config: Mapping[str, Any]
    training_steps: int
    start_step: int = 0
    priority: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    owner: str = "local"
    parent_job: str | None = None
    parent_checkpoint: str | None = None
    resume_mode: str | None = None
    diff: Any = None
    idempotency_key: str | None = None
    request_hash: str | None = None
    run_after: float | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Enqueued:
    """The job that answers a request; `created` is False if an earlier request had made it."""

    job: Job
    created: bool


def enqueue(session: Session, spec: NewJob, now: float | None = None) -> Enqueued:
    """Put a job at the end of the line, or find the one that the same request made before.

    Raises:
        IdempotencyConflict: the owner used this key for a different request.
        CheckpointRemoved: the one it would start from is gone; one that is there stays until the job has its own.
    """
    take_turn(session, LINE)
    earlier = made_before(session, spec.owner, spec.idempotency_key, spec.request_hash)
    if earlier is not None:
        return Enqueued(earlier, created=False)
    if spec.parent_checkpoint is not None:
        _check_parent(session, spec.parent_checkpoint)
    now = time.time() if now is None else now
    last_place = session.exec(_last_place()).one()
    job = _row(spec, last_place + 1, now)
    session.add(job)
    session.flush()
    announce(session, job, now, _origin(spec))
    if spec.warning is not None:
        _warn(session, job, spec.warning, now)
    return Enqueued(job, created=True)


def anything_due(session: Session, now: float) -> bool:
    """Whether `claim` would find a job: what an idle worker asks, so that it takes no write lock in vain."""
    due = or_(col(Job.run_after).is_(None), col(Job.run_after) <= now)
    return session.exec(select(Job.id).where(col(Job.state) == State.QUEUED, due).limit(1)).first() is not None


def made_before(session: Session, owner: str, key: str | None, request_hash: str | None) -> Job | None:
    """The job that an earlier request made, or let go on, under this idempotency key.

    Raises:
        IdempotencyConflict: that was a different request.
    """
    if key is None:
        return None
    job = session.exec(_used(), params={"whose": owner, "key": key}).first()
    if job is not None and request_hash != (job.request_hash if job.idempotency_key == key else job.resume_hash):
        raise IdempotencyConflict(key)
    return job


def num_queued(session: Session) -> int:
    """How many jobs wait in line."""
    return session.exec(_num_queued()).one()


def claim(session: Session, worker_id: str, now: float, *, device: str | None = None) -> Job | None:
    """Take the first job that is due, by priority and then by its place in line; None if there is none.

    One statement, so that no two workers get the same job. The job that comes back carries the fence that every later
    write of its holder has to show.

    Args:
        device: What the job will train on, if that can serve one job at a time; None comes back while another has it.
    """
    if device is not None and _is_in_use(session, device):
        return None
    try:
        with session.begin_nested() if device is not None else nullcontext():
            return _take_first(session, worker_id, now, device)
    except IntegrityError:  # Someone else began to train on this device at the same moment.
        return None


def _take_first(session: Session, worker_id: str, now: float, device: str | None) -> Job | None:
    told = {"moment": now, "taker": worker_id, "on_device": device}
    job: Job | None = session.exec(_claim(), params=told, execution_options=RETURN_FRESH).scalar_one_or_none()
    if job is not None:
        announce(session, job, now)
    return job


# Statements are made once: putting one together takes as long as running it.


@cache
def _used() -> SelectOfScalar[Job]:
    used = or_(col(Job.idempotency_key) == bindparam("key"), col(Job.resume_key) == bindparam("key"))
    return select(Job).where(col(Job.owner) == bindparam("whose"), used)


@cache
def _last_place() -> SelectOfScalar[int]:
    return select(func.coalesce(func.max(Job.seq), 0))


@cache
def _num_queued() -> SelectOfScalar[int]:
    return select(func.count()).select_from(Job).where(col(Job.state) == State.QUEUED)


@cache
def _claim() -> ReturningUpdate[Any]:
    waiting = aliased(Job)
    is_due = or_(col(waiting.run_after).is_(None), col(waiting.run_after) <= bindparam("moment"))
    first_in_line = (
        select(waiting.id)
        .where(col(waiting.state) == State.QUEUED, is_due)
        .order_by(col(waiting.priority).desc(), col(waiting.place))
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    return (
        update(Job)
        .where(col(Job.id) == first_in_line)
        .values(
            state=State.STARTING,
            fence=col(Job.fence) + 1,
            attempt=col(Job.attempt) + 1,
            last_seq=col(Job.last_seq) + 1,
            claimed_checkpoint=col(Job.checkpoint),
            worker_id=bindparam("taker"),
            device=bindparam("on_device"),
            run_after=None,
            error=None,
        )
        .returning(Job)
    )


def _is_in_use(session: Session, device: str) -> bool:
    return session.exec(select(Job.id).where(col(Job.device) == device)).first() is not None


def request_cancel(session: Session, job: Job) -> Job:
    """Stop a job for good: at once if nobody holds it, else its worker is asked to. A final job is left as it is."""
    job = locked(session, job)
    if job.state in FINAL:
        return job
    if job.state in HELD:
        return _ask_holder(session, job, Stop.CANCEL)
    return transition(session, job.id, State.CANCELLED, fence=None, run_after=None)


def request_pause(session: Session, job: Job) -> Job:
    """Stop a job so that it can go on: at once if nobody holds it, else its worker is asked to.

    A job that is paused already, or about to be cancelled, is left as it is.

    Raises:
        IllegalTransition: the job is final.
    """
    job = locked(session, job)
    if job.state in FINAL:
        raise IllegalTransition(job.id, job.state, State.PAUSED)
    if job.state in HELD:
        return job if job.stop_requested is Stop.CANCEL else _ask_holder(session, job, Stop.PAUSE)
    if job.state is State.RETRY_WAIT:
        job = transition(session, job.id, State.QUEUED, fence=None, run_after=None)
    return job if job.state is State.PAUSED else transition(session, job.id, State.PAUSED, fence=None)


def unpause(session: Session, job: Job, **columns: Any) -> Job:
    """Let a paused job go on, from its latest checkpoint; a pause that its worker has not begun is taken back.

    Args:
        columns: Further columns of `Job` to set in the same transaction.

    Raises:
        JobBusy: the worker is stopping the job just now.
        IllegalTransition: the job is not paused.
    """
    job = locked(session, job)
    if job.state is State.STOPPING:
        raise JobBusy(f"Job {job.id} is stopping; wait until it is paused.")
    if job.state in HELD and job.stop_requested is Stop.PAUSE:
        return _ask_holder(session, job.sqlmodel_update(columns), None)
    if job.state is not State.PAUSED:
        raise IllegalTransition(job.id, job.state, State.QUEUED)
    return transition(session, job.id, State.QUEUED, fence=None, stop_requested=None, error=None, **columns)


def locked(session: Session, job: Job) -> Job:
    """The job as it is now, kept from others until the transaction ends.

    Raises:
        JobNotFound: it is gone.
    """
    found = session.get(Job, job.id, populate_existing=True, with_for_update=True)
    if found is None:
        raise JobNotFound(job.id)
    return found


def wake_due(session: Session, now: float) -> list[Job]:
    """Put failed jobs whose waiting time is over back in line; those come back."""
    # No attempt waits for longer than that: a moment farther away is from before somebody set the clock back.
    is_due = or_(col(Job.run_after) <= now, col(Job.run_after) > now + MAX_RETRY_SECONDS)
    due = select(Job.id).where(col(Job.state) == State.RETRY_WAIT, is_due).order_by(col(Job.seq))
    ids = session.exec(due.with_for_update(skip_locked=True)).all()
    return [transition(session, job_id, State.QUEUED, fence=None, now=now, run_after=None) for job_id in ids]


def _row(spec: NewJob, seq: int, now: float) -> Job:
    return Job(
        seq=seq,
        place=seq * ROOM,
        name=spec.name,
        owner=spec.owner,
        priority=spec.priority,
        config=dict(spec.config),
        meta=dict(spec.metadata),
        source=str(spec.config.get("source", "")),
        model_type=str(spec.config.get("model_type", "")),
        parent_job=spec.parent_job,
        parent_checkpoint=spec.parent_checkpoint,
        resume_mode=spec.resume_mode,
        diff=spec.diff,
        start_step=spec.start_step,
        step=spec.start_step,
        training_steps=spec.training_steps,
        run_after=spec.run_after,
        idempotency_key=spec.idempotency_key,
        request_hash=spec.request_hash,
        last_seq=1,
        created_at=now,
    )


def _origin(spec: NewJob) -> dict[str, Any]:
    """What the first event says of a run that goes on from a checkpoint."""
    if spec.parent_checkpoint is None:
        return {}
    told = {"mode": spec.resume_mode, "parent": spec.parent_checkpoint, "diff": spec.diff or []}
    return told if spec.warning is None else {**told, "warning": spec.warning}


def _warn(session: Session, job: Job, message: str, now: float) -> None:
    """An event of its own, too, since a log that is read as text shows those."""
    job.last_seq += 1
    session.add(job)
    session.flush()
    insert_events(session, job.id, job.last_seq, job.attempt, [("warning", {"message": message})], now)


def _check_parent(session: Session, checkpoint_id: str) -> None:
    """From here to the end of the transaction nobody removes it, and from then on the job keeps it."""
    take_turn(session, SHELF)
    row = session.get(Checkpoint, checkpoint_id, populate_existing=True)
    if row is not None and row.removed_at is not None:
        raise removal_of(session, row)


def _ask_holder(session: Session, job: Job, stop: Stop | None) -> Job:
    job.stop_requested = stop
    session.add(job)
    session.flush()
    return job
