"""What is learnt from, and how it is laid out in batches."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from core.hyperparameters import from_json

BUNDLED_SOURCE = "training_data_final_merged.md"

MAX_SOURCES = 64

Role = Literal["text", "prompt", "completion", "messages", "chosen", "rejected"]

Columns = Annotated[
    dict[Role, Annotated[str, Field(min_length=1, max_length=200)]],
    BeforeValidator(from_json),
]
"""What a row's parts are called in a table: `{"prompt": "question", "completion": "answer"}`."""


class SourceShare(BaseModel):
    """One source among several."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(min_length=1, max_length=1024, description="Name below the sources root.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Its share of the batches, in proportion to the others'.")
    columns: Columns = Field(default_factory=dict, description="As `columns`, for this source alone.")


class DataSettings(BaseModel):
    """Sources, method, and the shape of batches."""

    source: str = Field(
        BUNDLED_SOURCE, min_length=1, max_length=1024, description="Training text: UTF-8, JSONL, CSV or Parquet."
    )
    sources: Annotated[tuple[SourceShare, ...], BeforeValidator(from_json)] = Field(
        (),
        max_length=MAX_SOURCES,
        description='Several sources with weights, instead of one: `[{"source": …, "weight": …}, …]`.',
    )
    columns: Columns = Field(
        default_factory=dict,
        description='What the parts of a row are called in the source: `{"prompt": "question", …}`.',
    )
    method: Literal["auto", "lm", "sft", "dpo"] = Field(
        "auto",
        description="`lm` learns all text, `sft` the answers to prompts, `dpo` preferences; `auto` looks at the rows.",
    )
    packing: bool = Field(
        True, description="With `sft`, several examples share a row of a batch, and none sees another."
    )
    block_size: int = Field(128, ge=1, le=131_072, description="Tokens of context.")
    batch_size: int = Field(16, ge=1, le=65_536, description="Sequences that go through the model at once.")
    seed: int = Field(1337, ge=0, lt=2**63, description="Decides weights, batches, dropout.")
    skip_batches: int = Field(
        0, ge=0, le=10_000_000, description="Steps' worth of batches to leave out from here on: past what broke a run."
    )

    @field_validator("sources")
    @classmethod
    def _each_source_once(cls, sources: tuple[SourceShare, ...]) -> Any:
        names = [PurePosixPath(share.source) for share in sources]  # Of `a` and `./a`, which are one file.
        if repeated := {str(name) for name in names if names.count(name) > 1}:
            raise ValueError(f"'{min(repeated)}' is there more than once: give it a larger weight instead")
        return sources

    @property
    def shares(self) -> tuple[SourceShare, ...]:
        """All sources, be it one."""
        return self.sources or (SourceShare(source=self.source, columns=self.columns),)
