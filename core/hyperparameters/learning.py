"""How it learns: how long, at which rate, by which rule, in which numbers."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


class LearningSettings(BaseModel):
    """The optimizer, its schedule, and where and in which numbers it computes."""

    training_steps: int = Field(1000, ge=1, le=10_000_000, description="Optimizer updates of this run.")
    num_epochs: float | None = Field(
        None, gt=0, le=10_000, description="Passes over the source; the run ends there, or at `training_steps` before."
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Peak rate of AdamW.")
    optimizer: Literal["adamw", "muon", "adamw_8bit"] = Field(
        "adamw",
        description="`muon` orthogonalizes the updates of the blocks' matrices, and AdamW does the rest; `adamw_8bit` "
        "keeps its moments in 8 bits and needs bitsandbytes.",
    )
    muon_learning_rate: float = Field(0.02, gt=0, le=10, description="Peak rate of the matrices under `muon`.")
    weight_decay: float = Field(0.01, ge=0, le=10, description="Pull of the weights towards zero, times the rate.")
    beta1: float = Field(0.9, ge=0, lt=1, description="How slowly AdamW forgets gradients.")
    beta2: float = Field(0.99, ge=0, lt=1, description="How slowly AdamW forgets their squares.")
    max_grad_norm: float | None = Field(
        None,
        ge=0,
        le=1e6,
        description="Gradients are scaled down to this norm: by default 1.0, with LoRA 2.0; 0 for never.",
    )
    lr_schedule: Literal["constant", "linear", "cosine", "wsd"] = Field(
        "constant", description="After the warm-up: level, down in a line or a cosine, or level and down at the end."
    )
    min_lr_ratio: float = Field(0.0, ge=0, le=1, description="Where the schedule ends, as a part of the peak rate.")
    decay_fraction: float = Field(0.2, gt=0, le=1, description="The part of the run in which `wsd` goes down.")
    use_lr_warmup: bool = Field(True, description="Raise the rate linearly over `warmup_steps`.")
    warmup_steps: int = Field(
        100,
        ge=1,
        le=10_000_000,
        description="Updates until the peak rate is reached; with `num_epochs`, at most a tenth of the run that "
        "begins, which a resume keeps.",
    )
    gradient_accumulation_steps: int = Field(1, ge=1, le=65_536, description="Batches whose gradients make one update.")
    num_processes: int = Field(
        1, ge=1, le=1024, description="Processes (ranks) that train together, each on batches of its own."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Products are computed in it; weights stay in fp32."
    )
    deterministic: bool = Field(
        False, description="On CUDA, only algorithms that repeat to the last bit, which are slower."
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Evaluate and answer with an average of the weights that forgets this slowly; 0 for none.",
    )
    early_stopping_patience: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Evaluations without a better validation loss after which the run ends; 0 for never.",
    )
    early_stopping_min_delta: float = Field(0.0, ge=0, le=1e3, description="By how much better it has to be.")
    dpo_beta: float = Field(0.1, gt=0, le=100, description="How far `dpo` may lead away from the base.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="`auto` (the first of cuda, mps, cpu at hand), or one of them.",
    )
