"""What a run tells and keeps: evaluations, samples, checkpoints, trackers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from core.hyperparameters import from_json

Tracker = Literal["tensorboard", "mlflow", "wandb", "trackio"]
Prompt = Annotated[str, Field(max_length=4000)]


def _each_once(trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
    return tuple(dict.fromkeys(trackers))


class ReportingSettings(BaseModel):
    """How often it is looked at."""

    test_mode: bool = Field(False, description="Choose tiny defaults, for a run of seconds.")
    eval_interval: int = Field(100, ge=1, le=10_000_000, description="Updates between evaluations.")
    eval_iters: int = Field(10, ge=1, le=100_000, description="Batches per part in one evaluation.")
    enable_checkpoints: bool = Field(True, description="Save at each interval; the final one is saved too.")
    checkpoint_interval: int = Field(100, ge=1, le=10_000_000, description="Updates between checkpoints.")
    keep_checkpoints: int = Field(
        2,
        ge=0,
        le=1_000_000,
        description="Latest checkpoints of a run to keep; the best and the pinned ones stay, too. 0 keeps all.",
    )
    enable_output_to_file: bool = Field(True, description="Keep a script run's console output in a file.")
    sample_interval: int = Field(
        0, ge=0, le=10_000_000, description="Updates between samples while it trains; 0 for one at the end alone."
    )
    sample_prompts: Annotated[tuple[Prompt, ...], BeforeValidator(from_json)] = Field(
        (), max_length=16, description="What samples go on from; by default one prompt that fits the model."
    )
    temperature: float = Field(0.7, ge=0, le=10, description="Of the samples; 0 is greedy.")
    top_k: int = Field(50, ge=1, le=1_000_000, description="Likeliest tokens that a sample draws from.")
    max_new_tokens: int = Field(300, ge=0, le=8192, description="Length of a sample; 0 for none.")
    trackers: Annotated[tuple[Tracker, ...], BeforeValidator(from_json), AfterValidator(_each_once)] = Field(
        (), max_length=4, description="Where numbers go, too: `tensorboard`, `mlflow`, `wandb`, `trackio`."
    )
