"""Bodies in and out. A job's settings are `core.config.TrainingConfig`'s own fields, never written down again here."""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, PlainSerializer, create_model, model_validator

from core.checkpoints.resume_rules import ResumeMode
from core.config import TrainingConfig, tokens_per_step
from core.events import finite
from core.sources.rows import RowKind, SourceFormat
from jobs.tables import FINAL, HELD, Checkpoint, Job, State, Stop, Worker

WORKER_SEEN_SECONDS = 30.0
"""A worker that said nothing for this long counts as gone."""

Item = TypeVar("Item")

_NO_NUL = r"^[^\x00]*$"

# A name is shown in terminals, where control characters would speak for themselves.
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Priority = Annotated[int, Field(ge=-1_000_000, le=1_000_000, description="Higher ones run first.")]
Metadata = Annotated[
    dict[
        Annotated[str, Field(min_length=1, max_length=64, pattern=_NO_NUL)],
        Annotated[str, Field(max_length=512, pattern=_NO_NUL)],
    ],
    Field(max_length=16, description="Up to 16 pairs of your own, to find jobs by."),
]
Number = Annotated[float | None, PlainSerializer(finite)]
"""NaN and infinities leave as null."""


RunAfter = Annotated[
    AwareDatetime | None,
    Field(description="Not before this moment: ISO 8601 with its offset from UTC, or unix seconds."),
]


class JobIn(TrainingConfig):
    """A fresh run. Settings that are left out get the defaults of `model_type` and `test_mode`."""

    name: Name | None = Field(None, description="By default made of the model and the source.")
    priority: Priority = 0
    metadata: Metadata = Field(default_factory=dict)
    run_after: RunAfter = None

    def given_config(self) -> dict[str, Any]:
        """What makes a TrainingConfig of it."""
        return self.model_dump(include=set(TrainingConfig.model_fields))


class JobPatch(BaseModel):
    """What may change in a job that exists; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    priority: Priority | None = None
    metadata: Metadata | None = None
    before: str | None = Field(
        None, pattern=r"^[!-~]{1,64}$", description="Id of a job in line: go in front of it, with its priority."
    )

    @model_validator(mode="after")
    def _one_place(self) -> JobPatch:
        if self.before is not None and self.priority is not None:
            raise ValueError("before brings the other job's priority with it: give one of before and priority")
        return self


class ResumeOptions(BaseModel):
    """How a run goes on, beside the settings that it overrides."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    mode: ResumeMode = Field(
        ResumeMode.EXTEND,
        description="`exact` (only how long may differ), `extend` (optimizer and data position go on) "
        "or `warm_start` (the weights alone).",
    )
    resume_steps: int | None = Field(None, ge=1, le=10_000_000, description="The same as `training_steps`.")
    name: Name | None = Field(None, description="By default made of the model, the source and the step.")
    priority: Priority = 0
    metadata: Metadata = Field(default_factory=dict)
    run_after: RunAfter = None

    @model_validator(mode="after")
    def _one_length(self) -> ResumeOptions:
        steps = getattr(self, "training_steps", None)
        if None not in (steps, self.resume_steps) and steps != self.resume_steps:
            raise ValueError(f"resume_steps is {self.resume_steps} and training_steps {steps}: give one of them")
        return self

    def overrides(self) -> dict[str, Any]:
        """The settings that were given."""
        given = self.model_dump(include=set(TrainingConfig.model_fields), exclude_none=True)
        return given if self.resume_steps is None else {**given, "training_steps": self.resume_steps}


def _optional_settings() -> dict[str, Any]:
    """Each setting of a run with its bounds and description, but without its default."""
    return {
        name: (Annotated[field.annotation, Field(), *field.metadata] | None, Field(None, description=field.description))
        for name, field in TrainingConfig.model_fields.items()
    }


if TYPE_CHECKING:

    class ResumeIn(ResumeOptions):
        """Any setting of a run, each one optional."""
else:
    ResumeIn = create_model("ResumeIn", __base__=ResumeOptions, **_optional_settings())


class Difference(BaseModel):
    """One setting that differs between a checkpoint and the run that goes on from it."""

    field: str
    before: Any
    after: Any


class JobOut(BaseModel):
    """A job with its progress. Steps count optimizer updates, those of the runs before it included."""

    id: str
    name: str
    state: State
    stop_requested: Stop | None = Field(description="What its worker was asked to do and has not done yet.")
    config: dict[str, Any]
    step: int
    start_step: int
    training_steps: int = Field(description="Updates that this run makes, from `start_step` on.")
    attempt: int
    parent: str | None = Field(description="Id of the checkpoint that it goes on from.")
    parent_job: str | None = Field(description="Id of the job that made that one.")
    checkpoint: str | None = Field(description="Id of its latest checkpoint.")
    progress: float = Field(description="0 to 1.")
    eta_seconds: Number
    tokens_per_second: Number
    train_loss: Number
    val_loss: Number
    error: dict[str, Any] | None
    created_at: str
    started_at: str | None
    finished_at: str | None
    metadata: dict[str, Any]
    priority: int
    run_after: str | None = Field(description="It waits at least until then: as was asked, or after a failed attempt.")
    mode: ResumeMode | None = Field(description="How it was resumed, if it was.")
    diff: list[Difference] | None = Field(
        description="What differs from the checkpoint it goes on from, or changed when it last went on after a pause."
    )
    events_url: str

    @classmethod
    def of(cls, job: Job) -> JobOut:
        """As the ledger has it."""
        return cls(
            **{name: getattr(job, name) for name in _SAME_IN_JOB},
            stop_requested=job.stop_requested if job.state in HELD else None,
            config=finite(job.config),
            error=finite(job.error),
            metadata=finite(job.meta),
            parent=job.parent_checkpoint,
            progress=_progress(job),
            eta_seconds=_eta_seconds(job),
            created_at=iso_time(job.created_at),
            started_at=_maybe_time(job.started_at),
            finished_at=_maybe_time(job.finished_at),
            run_after=_maybe_time(job.run_after),
            mode=job.resume_mode,
            events_url=f"/jobs/{job.id}/events",
        )


_SAME_IN_JOB = (
    *("id", "name", "state", "step", "start_step", "training_steps", "attempt", "checkpoint", "priority", "diff"),
    *("tokens_per_second", "train_loss", "val_loss", "parent_job"),
)


class CheckpointOut(BaseModel):
    """A checkpoint; `path` is relative to the checkpoints root."""

    id: str
    name: str
    job_id: str | None
    step: int
    path: str
    train_loss: Number
    val_loss: Number
    size_bytes: int
    pinned: bool
    created_at: str
    parent: str | None = Field(description="Id of the checkpoint that its run started from.")
    model: str
    source: str

    @classmethod
    def of(cls, row: Checkpoint) -> CheckpointOut:
        """As the ledger has it."""
        return cls(**{**row.model_dump(include=set(cls.model_fields)), "created_at": iso_time(row.created_at)})


class BadRowOut(BaseModel):
    """A row that cannot be used, and why."""

    number: int = Field(description="Of its first line for JSONL and CSV, of the row for Parquet; from 1 on.")
    reason: str


class SourceOut(BaseModel):
    """A source, or why it cannot be one. What takes long to find out is null in a list until it was asked for once."""

    name: str
    size_bytes: int | None = None
    format: SourceFormat | None = None
    kind: RowKind | None = Field(None, description="Of its rows.")
    num_rows: int | None = Field(None, description="That can be used; of a text, pieces of up to 1 MiB.")
    num_bad_rows: int | None = None
    bad_rows: list[BadRowOut] = Field(default_factory=list, description="The first 20 of them.")
    num_characters: int | None = Field(None, description="Of all rows that can be used.")
    sha256: str | None = None
    error: str | None = None


class WorkerOut(BaseModel):
    """A worker process and what it does."""

    id: str
    hostname: str
    pid: int
    version: str
    devices: list[Any]
    capacity: int = Field(description="Jobs that it trains at once.")
    memory_bytes: int
    job_id: str | None = Field(description="One of those it trains.")
    draining: bool
    generates: bool = Field(description="Whether it answers POST /generate.")
    alive: bool = Field(description="Whether it was heard of in the last 30 seconds.")
    started_at: str
    seen_at: str

    @classmethod
    def of(cls, worker: Worker) -> WorkerOut:
        """Without the token and the address that only the service needs."""
        return cls(
            **worker.model_dump(include=set(cls.model_fields) - {"started_at", "seen_at"}),
            generates=worker.inference_url is not None,
            alive=is_alive(worker),
            started_at=iso_time(worker.started_at),
            seen_at=iso_time(worker.seen_at),
        )


class EventOut(BaseModel):
    """One thing that a job said."""

    seq: int
    kind: str
    created_at: str
    attempt: int
    data: dict[str, Any]


class Page(BaseModel, Generic[Item]):
    """A part of a list; ask for what comes `after` its last item if there is more."""

    data: list[Item]
    has_more: bool = False


class FieldError(BaseModel):
    """What is wrong with one field of a request."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457: what is wrong, and what to do."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    errors: list[FieldError]
    hint: str
    request_id: str


def iso_time(seconds: float) -> str:
    """Unix seconds as ISO 8601 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_alive(worker: Worker) -> bool:
    """Whether a worker was heard of lately."""
    return time.time() - worker.seen_at <= WORKER_SEEN_SECONDS


def _maybe_time(seconds: float | None) -> str | None:
    return None if seconds is None else iso_time(seconds)


def _progress(job: Job) -> float:
    if job.state is State.SUCCEEDED:
        return 1.0
    return min(1.0, max(0.0, (job.step - job.start_step) / max(1, job.training_steps)))


def _eta_seconds(job: Job) -> float | None:
    """Known while steps are being made at a known pace."""
    rate = job.tokens_per_second
    if job.state in FINAL or rate is None or not math.isfinite(rate) or rate <= 0:
        return None
    steps_left = max(0, job.start_step + job.training_steps - job.step)
    return round(steps_left * tokens_per_step(job.config) / rate, 1)
