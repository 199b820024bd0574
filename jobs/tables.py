"""The rows of the ledger, and the states a job goes through.

    enqueue
       │
       ▼       claim              started              finish
     queued ──────────► starting ─────────► running ──────────► succeeded
      ▲ ▲ ▲                └────────┬──────────┘
      │ │ │                         │                  finish
      │ │ │                         ├─────────────────────────► failed
      │ │ │        release: drained │
      │ │ └─────────────────────────┤
      │ │ wake_due            retry │
      │ └────────── retry_wait ◄────┤
      │                             │ acknowledge_stop
      │                             ▼
      │ unpause         finish            finish
      └────────── paused ◄────── stopping ────────────────────► cancelled, succeeded

    queued ── request_pause ──► paused
    queued, retry_wait, paused ── request_cancel ──► cancelled

`TRANSITIONS` says the same to the program. succeeded, failed and cancelled are final. A job is *held* by a worker while
it is starting, running or stopping; only then does its fence speak for anyone.

Times are unix seconds (UTC). Steps count optimizer updates, and a job's `step` counts those of its ancestors too: a run
goes from `start_step` to `start_step + training_steps`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from enum import StrEnum
from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, Column, Index, Text, UniqueConstraint, desc, text
from sqlalchemy import Enum as Choice
from sqlmodel import Field, SQLModel


class State(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    RETRY_WAIT = "retry_wait"
    PAUSED = "paused"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Stop(StrEnum):
    """What a person asked of a job that a worker holds."""

    CANCEL = "cancel"
    PAUSE = "pause"


class Removal(StrEnum):
    """Why a checkpoint is gone."""

    SUPERSEDED = "superseded"
    DELETED = "deleted"


FINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

HELD = frozenset({State.STARTING, State.RUNNING, State.STOPPING})

TRANSITIONS: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.PAUSED, State.CANCELLED}),
    State.STARTING: frozenset({State.RUNNING, State.STOPPING, State.RETRY_WAIT, State.FAILED, State.QUEUED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.STOPPING, State.RETRY_WAIT, State.QUEUED}),
    State.STOPPING: frozenset({State.CANCELLED, State.PAUSED, State.SUCCEEDED}),
    State.RETRY_WAIT: frozenset({State.QUEUED, State.CANCELLED}),
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}

ENDED_AND_WHOLE = "thinned_seq < last_seq AND finished_at IS NOT NULL"
"""Jobs whose log may be thinned, in SQL: an index has these words, so a query has to say the same."""

KEPT = "removed_at IS NULL"
"""Checkpoints that are there, in SQL; an index has these words, too."""

LEAVING = "removed_at IS NOT NULL AND discarded_at IS NULL"
"""Checkpoints that are gone, while their folders may still be there; so has another one."""

ROOM = 1 << 20
"""Between the places of two jobs that follow each other, so that others can be put between them."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_job_id() -> str:
    """`job_` and 20 random characters: about 103 bits, safe in a URL and in a file name."""
    return "job_" + "".join(secrets.choice(_ALPHABET) for _ in range(20))


def _choice(kind: type[StrEnum]) -> Choice:
    """A text column of an enum's values; the CHECK constraints are named, so that a migration can alter them."""
    return Choice(kind, values_callable=_values, native_enum=False, create_constraint=False, length=16)


def _values(kind: Iterable[StrEnum]) -> list[str]:
    return [member.value for member in kind]


def _one_of(column: str, kind: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in _values(kind))})"


def _where(condition: str) -> dict[str, Any]:
    """An index of these rows alone."""
    return {f"{dialect}_where": text(condition) for dialect in ("sqlite", "postgresql")}


class Job(SQLModel, table=True):
    """One run that was asked for, with its progress. `place` is where it stands in line, behind its priority."""

    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint(_one_of("state", State), name="ck_job_state"),
        CheckConstraint(_one_of("stop_requested", Stop), name="ck_job_stop_requested"),
        UniqueConstraint("owner", "idempotency_key", name="uq_job_idempotency"),
        UniqueConstraint("owner", "resume_key", name="uq_job_resume"),
        Index("ix_job_claim", "state", desc("priority"), "place", "run_after"),
        Index("ix_job_newest", "owner", "created_at", "id"),
        Index("ix_job_newest_by_state", "owner", "state", "created_at", "id"),
        Index("ix_job_newest_by_source", "owner", "source", "created_at", "id"),
        Index("ix_job_newest_by_model", "owner", "model_type", "created_at", "id"),
        Index("ix_job_seq", "seq", unique=True),
        Index("ix_job_device", "device", unique=True),
        Index("ix_job_whole", "finished_at", **_where(ENDED_AND_WHOLE)),
    )

    id: str = Field(default_factory=new_job_id, primary_key=True)
    seq: int = Field(sa_type=BigInteger, description="1, 2, 3 … in the order of their requests.")
    place: int = Field(sa_type=BigInteger, sa_column_kwargs={"server_default": "0"})
    name: str
    owner: str = "local"
    state: State = Field(default=State.QUEUED, sa_column=Column(_choice(State), nullable=False))
    priority: int = 0
    config: dict[str, Any] = Field(sa_column=Column(JSON, nullable=False))
    # A declarative class keeps `metadata` for itself.
    meta: dict[str, Any] = Field(default_factory=dict, sa_column=Column("metadata", JSON, nullable=False))
    source: str = Field(default="", description="A copy from the config, for filters.")
    model_type: str = Field(default="", description="A copy from the config, for filters.")

    parent_job: str | None = None
    parent_checkpoint: str | None = None
    resume_mode: str | None = None
    diff: Any = Field(default=None, sa_column=Column(JSON(none_as_null=True)))

    start_step: int = 0
    training_steps: int = Field(description="Updates that this run makes.")
    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    tokens_per_second: float | None = None
    checkpoint: str | None = Field(default=None, description="Id of the latest one.")

    attempt: int = Field(default=0, description="Claims so far, less those that ended in a drain or a pause.")
    failures_in_a_row: int = Field(default=0, description="Failed attempts since one that made a checkpoint.")
    claimed_checkpoint: str | None = Field(default=None, description="`checkpoint` as it was at the last claim.")
    fence: int = Field(default=0, sa_type=BigInteger)
    heartbeat: int = Field(default=0, sa_type=BigInteger)
    worker_id: str | None = None
    device: str | None = Field(default=None, description="The GPU that its holder trains on; one job has it at a time.")
    stop_requested: Stop | None = Field(default=None, sa_column=Column(_choice(Stop)))
    run_after: float | None = None
    last_seq: int = Field(default=0, sa_type=BigInteger, description="Number of the latest event.")
    thinned_seq: int = Field(
        default=0,
        sa_type=BigInteger,
        sa_column_kwargs={"server_default": "0"},
        description="Up to this number, steps may be gone.",
    )
    error: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))

    created_at: float
    started_at: float | None = None
    finished_at: float | None = None

    idempotency_key: str | None = None
    request_hash: str | None = None
    resume_key: str | None = Field(default=None, description="Idempotency key of the latest request to go on.")
    resume_hash: str | None = None


class Event(SQLModel, table=True):
    """One thing a run said. `data` is one line of JSON, kept and sent on as it is."""

    __tablename__ = "event"
    # The key is the order in which events are read: SQLite then keeps the rows in that order, without a second tree.
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: str = Field(primary_key=True, foreign_key="job.id", ondelete="CASCADE")
    seq: int = Field(primary_key=True, sa_type=BigInteger)
    kind: str
    attempt: int
    created_at: float
    data: str = Field(sa_type=Text)


class Checkpoint(SQLModel, table=True):
    """A published checkpoint. It outlives its job; one that a console run left has no job at all.

    One that was removed keeps its row: who descends from it, and what became of it, can still be told.
    """

    __tablename__ = "checkpoint"
    __table_args__ = (
        Index("ix_checkpoint_job", "job_id", "removed_at", "step"),
        Index("ix_checkpoint_newest", "owner", "created_at", "id", **_where(KEPT)),
        Index("ix_checkpoint_run", "run", "step"),
        Index("ix_checkpoint_leaving", "name", **_where(LEAVING)),
    )

    id: str = Field(primary_key=True)
    name: str = Field(unique=True)
    owner: str = "local"
    job_id: str | None = Field(default=None, foreign_key="job.id", ondelete="SET NULL")
    run: str | None = Field(default=None, description="What all of one run have in common; a job's id, also after it.")
    attempt: int = 0
    parent: str | None = Field(default=None, description="Id of the checkpoint that its run started from.")
    step: int
    path: str = Field(description="Relative to the checkpoints root.")
    source: str = ""
    model: str = ""
    train_loss: float | None = None
    val_loss: float | None = None
    size_bytes: int = Field(default=0, sa_type=BigInteger)
    pinned: bool = False
    created_at: float
    removed_at: float | None = Field(default=None, description="When it went; it is there while this is null.")
    removed_because: Removal | None = Field(default=None, sa_column=Column(_choice(Removal)))
    discarded_at: float | None = Field(
        default=None, description="When its folder had gone, too; one that is put back afterwards is its owner's."
    )


class Worker(SQLModel, table=True):
    """A worker process that is, or was a moment ago, at work. `heartbeat` counts its beats."""

    __tablename__ = "worker"

    id: str = Field(primary_key=True)
    hostname: str
    pid: int
    version: str
    devices: list[Any] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    memory_bytes: int = Field(default=0, sa_type=BigInteger)
    inference_url: str | None = None
    inference_token: str | None = Field(default=None, repr=False)
    capacity: int = Field(
        default=1, sa_column_kwargs={"server_default": "1"}, description="Jobs that it trains at once."
    )
    job_id: str | None = Field(default=None, description="One of those it trains.")
    draining: bool = False
    heartbeat: int = Field(default=0, sa_type=BigInteger)
    started_at: float
    seen_at: float
