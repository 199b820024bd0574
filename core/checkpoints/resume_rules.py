"""What may change between a checkpoint and the run that goes on from it: one table, used by code and documents alike.

A setting that is in neither set of `RULES` may change in every mode. How long to train is the one difference that
`exact` allows beside where the run happens; `extend` keeps whatever optimizer state and data position depend on;
`warm_start` takes the weights alone, so only what shapes them must stay.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from enum import StrEnum
from typing import Any

from core.errors import CheckpointMismatch, Difference


class ResumeMode(StrEnum):
    """How much of a checkpoint goes on."""

    EXACT = "exact"
    EXTEND = "extend"
    WARM_START = "warm_start"


SHAPE = frozenset(
    {
        "model_type",
        "base_model",
        "block_size",
        "n_embd",
        "n_head",
        "n_layer",
        "tokenizer",
        "bpe_vocab_size",
        "architecture",
        "activation",
        "qk_norm",
        "tie_embeddings",
        "use_lora",
        "lora_rank",
        "lora_targets",
        "use_dora",
    }
)
"""Shapes the weights: may never change."""

CONTINUITY = frozenset(
    {
        "source",
        "sources",
        "columns",
        "method",
        "packing",
        "seed",
        "lora_alpha",
        "use_rslora",
        "quantization",
        "freeze_layers",
        "optimizer",
        "ema_decay",
        "use_lr_warmup",
        "warmup_steps",
    }
)
"""What the optimizer's state and the data position stand on: may change in `warm_start` alone."""

FREE = frozenset(
    {
        "training_steps",
        "num_epochs",
        "early_stopping_patience",
        "early_stopping_min_delta",
        "sample_interval",
        "sample_prompts",
        "trackers",
        "enable_checkpoints",
        "checkpoint_interval",
        "keep_checkpoints",
        "enable_output_to_file",
        "device",
        "temperature",
        "top_k",
        "max_new_tokens",
    }
)
"""Changes no number that a run computes at a step: may change even in `exact`."""

RULES: dict[ResumeMode, str] = {
    ResumeMode.EXACT: "only how long to train, when to save and where to run",
    ResumeMode.EXTEND: "everything but the model's shape, the sources and how they are read, the seed, the kind of "
    "optimizer and the warm-up",
    ResumeMode.WARM_START: "everything but the model's shape",
}


def may_change(field: str, mode: ResumeMode) -> bool:
    """Whether `field` may differ from the checkpoint's in this mode."""
    if field in SHAPE:
        return False
    if mode is ResumeMode.EXACT:
        return field in FREE
    return mode is ResumeMode.WARM_START or field not in CONTINUITY


def merge(
    before: Mapping[str, Any], after: Mapping[str, Any], mode: ResumeMode, *, same_content: Container[str] = ()
) -> list[Difference]:
    """Every difference between two configurations.

    Args:
        same_content: Settings that name something whose content is compared elsewhere: another name for it is fine.

    Raises:
        CheckpointMismatch: a setting differs that may not; the message names each with both values.
    """
    differences = [Difference(name, before.get(name), after[name]) for name in after if before.get(name) != after[name]]
    forbidden = [item for item in differences if item.field not in same_content and not may_change(item.field, mode)]
    if forbidden:
        raise CheckpointMismatch(
            f"mode '{mode}' may change {RULES[mode]}, but this would change {', '.join(map(str, forbidden))}",
            differences=differences,
            forbidden=forbidden,
        )
    return differences
