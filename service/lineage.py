"""A checkpoint with all that is known of it: what its folder says, and where it comes from."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from core.checkpoints.resume_rules import ResumeMode
from jobs.lineage import Link
from service.schemas import CheckpointOut, iso_time


class LinkOut(BaseModel):
    """One checkpoint in a chain of runs that went on from each other."""

    id: str
    known: bool = Field(description="False if only its child tells of it; the rest is null then.")
    name: str | None = None
    step: int | None = None
    job_id: str | None = None
    mode: ResumeMode | None = Field(None, description="How its run was resumed; null for a fresh one.")
    created_at: str | None = None
    removed: bool = Field(False, description="Whether only the memory of it is left.")

    @classmethod
    def of(cls, link: Link) -> LinkOut:
        """As the ledger has it."""
        if link.row is None:
            return cls(id=link.id, known=False)
        return cls(
            **link.row.model_dump(include={"id", "name", "step", "job_id"}),
            known=True,
            mode=link.mode,
            created_at=iso_time(link.row.created_at),
            removed=link.row.removed_at is not None,
        )


class CheckpointDetail(CheckpointOut):
    """With what the checkpoint says of itself, and where it comes from."""

    manifest: dict[str, Any] | None = Field(description="Null if its folder is gone.")
    lineage: list[LinkOut] = Field(
        description="From itself to the first, a link for each run; at most 1000, the rest is the last one's lineage."
    )
