"""Low-rank adapters, through peft."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn


def adapter_config(targets: list[str] | str, rank: int, alpha: float, dropout: float, **more: Any) -> Any:
    """A `peft.LoraConfig`; peft counts alpha in whole numbers only in its hints, a float works."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, **more)


def add_adapters(model: nn.Module, targets: list[str], rank: int, alpha: float, dropout: float) -> None:
    """Put adapters into `model` in place and freeze everything else."""
    from peft import inject_adapter_in_model

    inject_adapter_in_model(adapter_config(targets, rank, alpha, dropout), model)


def wrap_with_adapters(model: Any, config: Any) -> Any:
    """A pretrained model as a `peft.PeftModel`, its own weights frozen."""
    from peft import get_peft_model

    with warnings.catch_warnings():
        # peft asks transformers by a name that transformers has just deprecated; nothing for a user to act on.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return get_peft_model(model, config)
