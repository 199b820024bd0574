"""Curves on their way out: as JSON with their segments, or as CSV for a spreadsheet."""

from __future__ import annotations

import csv
from dataclasses import asdict
from io import StringIO
from typing import Any

from pydantic import BaseModel, Field

from core.checkpoints.resume_rules import ResumeMode
from jobs.curves import Curve
from service.schemas import Number


class StepOut(BaseModel):
    """One update: the loss before it in nats per token, the norm of the gradient before clipping, and the pace.

    `mfu` is the part of the device's arithmetic that the model needed, from 0 to about 1.
    """

    step: int
    loss: Number = None
    lr: Number = None
    grad_norm: Number = None
    tokens_per_second: Number = None
    memory_bytes: int | None = None
    mfu: Number = None


class EvaluationOut(BaseModel):
    """After so many updates: mean losses in nats per token, the part of tokens told right, e to the validation loss."""

    step: int
    train_loss: Number = None
    val_loss: Number = None
    val_accuracy: Number = None
    val_perplexity: Number = None


class SegmentOut(BaseModel):
    """One run's part of the curve: what it drew after `from_step`, up to and with `to_step`."""

    job: str
    from_step: int
    to_step: int
    checkpoint: str | None = Field(description="Id of the checkpoint that the run started from; null for a fresh run.")
    mode: ResumeMode | None


class MissingOut(BaseModel):
    """What came before the first segment and is not drawn: a console's run, or a job that was deleted."""

    job: str | None
    checkpoint: str | None
    before_step: int
    is_cut: bool = Field(description="Whether the chain was too long to follow; ask for the curve of `job` to go on.")


class CurveOut(BaseModel):
    """The loss by step, each step once, from the attempt that counts."""

    points: list[StepOut]
    evaluations: list[EvaluationOut]
    segments: list[SegmentOut] = Field(description="The runs that drew it, the oldest first.")
    missing: MissingOut | None = Field(description="Null if the curve begins where the training did, or was not asked.")
    downsampled: bool = Field(description="Whether there are more points than these.")

    @classmethod
    def of(cls, curve: Curve) -> CurveOut:
        """As it was drawn."""
        return cls.model_validate(
            {
                "points": curve.steps,
                "evaluations": curve.evaluations,
                "segments": [asdict(segment) for segment in curve.segments],
                "missing": curve.missing and asdict(curve.missing),
                "downsampled": curve.downsampled,
            }
        )

    def to_csv(self) -> str:
        """A header and a row for each step that was made or measured; what was not measured is empty."""
        rows: dict[int, dict[str, Any]] = {}
        for row in [point.model_dump() for point in (*self.points, *self.evaluations)]:
            rows.setdefault(row["step"], {}).update(row)
        text = StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[step] for step in sorted(rows))
        return text.getvalue()


_COLUMNS = list(dict.fromkeys([*StepOut.model_fields, *EvaluationOut.model_fields]))
