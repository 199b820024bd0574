"""What a worker is told, from `RATCHET_*` variables."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from jobs.settings import LedgerSettings


class WorkerSettings(LedgerSettings):
    """How a worker claims, beats and supervises. Times are in seconds."""

    lease_seconds: float = Field(30, gt=0, description="A holder silent for this long has lost its job.")
    heartbeat_seconds: float = Field(5, gt=0, description="Between two renewals of a lease; a sixth of a shorter one.")
    scan_seconds: float = Field(5, gt=0, description="Between two looks for lost and waiting jobs; likewise.")
    max_attempts: int = Field(5, ge=1, description="Claims of one job before it fails for good.")
    max_failures_in_a_row: int = Field(2, ge=1, description="Of these, failures without a new checkpoint in between.")
    retry_seconds: float = Field(1, ge=0, description="Before another attempt; doubles with each failure in a row.")
    hang_seconds: float = Field(
        600,
        gt=0,
        description="A child that makes no progress for this long is taken for hung. Fetching a base model and turning "
        "a source into tokens are one step each, without a sign of life: it has to be longer than either takes.",
    )
    capacity: int = Field(0, ge=0, description="Jobs trained at once; 0 for one on each GPU, or 1 without a GPU.")
    warm_child: bool = Field(True, description="Keep one child that has imported torch already; about 300 MB.")
    claim_seconds: float = Field(0.2, gt=0, description="Between two looks for a job to claim, when idle.")
    stop_poll_seconds: float = Field(0.5, gt=0, description="Between two looks for a request to stop.")
    drain_seconds: float = Field(20, gt=0, description="How long a child may take to save when the worker is to leave.")
    thin_events_days: float = Field(
        0,
        ge=0,
        description="So long after its end, most steps of a run leave its log, and a curve's worth stays; 0 never.",
    )
    inference: bool = Field(True, description="Serve generation from this worker.")
    inference_host: str = Field("127.0.0.1", description="Where the service reaches this worker's generation.")
    inference_threads: int = Field(0, ge=0, description="Threads of generation; 0 for half the cores.")
    inference_models: int = Field(2, ge=1, description="Models that generation keeps in memory.")

    @model_validator(mode="before")
    @classmethod
    def _beat_with_the_lease(cls, given: Any) -> Any:
        """A shorter lease brings shorter beats and scans with it, unless those are given as well."""
        if not isinstance(given, dict) or "lease_seconds" not in given:
            return given
        try:
            share = float(given["lease_seconds"]) / 6
        except (TypeError, ValueError):
            return given  # The field's own check will say what is wrong with it.
        return {"heartbeat_seconds": min(5.0, share), "scan_seconds": min(5.0, share), **given}

    @model_validator(mode="after")
    def _beat_before_the_lease_is_over(self) -> Self:
        if self.heartbeat_seconds >= self.self_fence_seconds:
            raise ValueError(
                f"heartbeat_seconds ({self.heartbeat_seconds:g}) must be less than two thirds of lease_seconds "
                f"({self.lease_seconds:g}), or every holder would lose its job"
            )
        return self

    @property
    def self_fence_seconds(self) -> float:
        """After this long without a renewal that succeeded, a holder stops itself: well before others may claim."""
        return self.lease_seconds * 2 / 3
