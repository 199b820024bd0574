"""What a child is told to do: one attempt at one job, as a line of JSON on its standard input."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from core.checkpoints.manifest import Checkpoint
from core.checkpoints.resume_rules import ResumeMode
from jobs.tables import Job
from worker.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class Assignment:
    """Places are absolute paths; `resume` is a checkpoint's folder or file, or None for a run from the beginning."""

    job_id: str
    attempt: int
    fence: int
    config: dict[str, Any]
    end_step: int
    sources: str
    checkpoints: str
    models: str
    cache: str = ""
    """Where what is made of sources is kept; nowhere if it is empty."""
    tracking: str = ""
    """Where trackers that write files write them; below the working folder if it is empty."""
    start_step: int | None = None
    """Where the job began, if its first attempt did not end it."""
    resume: str | None = None
    mode: str = ResumeMode.EXTEND
    parent: str | None = None
    """Id of the checkpoint that the job resumes, whatever this attempt goes on from."""
    has_begun: bool = False
    """Whether an earlier attempt has said anything that this one will say again."""
    visible_devices: str | None = None
    """`CUDA_VISIBLE_DEVICES` of the child; None leaves it as it is."""

    def to_line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def from_line(cls, line: str) -> Assignment:
        """What `to_line` wrote."""
        return cls(**json.loads(line))


def assign(
    job: Job,
    settings: WorkerSettings,
    own: Checkpoint | None,
    resumed: Checkpoint | None,
    visible_devices: str | None = None,
) -> Assignment:
    """What to tell the child of a job that has just been claimed.

    Args:
        own: The job's own newest checkpoint: an attempt goes on from what earlier ones published. Only a job with
            nothing of its own starts where its request said.
        resumed: The checkpoint that the job resumes, if it does.
        visible_devices: See `Assignment`.
    """
    begin = own or resumed
    return Assignment(
        job_id=job.id,
        attempt=job.attempt,
        fence=job.fence,
        config=job.config,
        end_step=job.start_step + job.training_steps,
        sources=str(settings.sources),
        checkpoints=str(settings.checkpoints),
        models=str(settings.models),
        cache=str(settings.data / "cache"),
        tracking=str(settings.data / "tensorboard"),
        start_step=job.start_step,
        resume=str(begin.path) if begin else None,
        mode=ResumeMode.EXTEND if own else job.resume_mode or ResumeMode.EXTEND,
        parent=job.parent_checkpoint,
        has_begun=job.started_at is not None,
        visible_devices=visible_devices,
    )
