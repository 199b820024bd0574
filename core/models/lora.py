"""Low-rank adapters, through peft."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from torch import nn

from core.errors import ConfigError
from core.libraries import import_peft
from core.models.lora_linear import take_adapted

ALL_LINEAR = "all-linear"

_MAX_SHOWN = 20


def adapter_targets(linear: Iterable[str], wanted: str = ALL_LINEAR) -> list[str]:
    """The layers that get adapters, as peft is to be told.

    Args:
        linear: Names of the linear layers that may get some, as `named_modules` has them.
        wanted: As in `TrainingConfig.lora_targets`. A name is a whole one or the end of one: `q_proj`,
            `layers.0.mlp.up_proj`.

    Returns:
        Names or their ends, sorted: of `all-linear`, the last part of each.

    Raises:
        ConfigError: a name is of none of them; the message lists those there are.
    """
    names = list(linear)
    kinds = sorted({name.rpartition(".")[2] for name in names})
    if wanted.strip() == ALL_LINEAR:
        return kinds
    chosen = sorted({part.strip() for part in wanted.split(",") if part.strip()})
    unknown = [part for part in chosen if not any(f".{name}".endswith(f".{part}") for name in names)]
    if unknown or not chosen:
        shown = f"{', '.join(kinds[:_MAX_SHOWN])}{', …' if len(kinds) > _MAX_SHOWN else ''}"
        said = f"{unknown[0][:100]!r} names" if unknown else "it names"
        raise ConfigError([("lora_targets", f"{said} no linear layer of this model, which has {shown or 'none'}")])
    return chosen


def adapter_config(targets: list[str] | str, rank: int, alpha: float, dropout: float, **more: Any) -> Any:
    """A `peft.LoraConfig`; peft counts alpha in whole numbers only in its hints, a float works.

    Args:
        more: `use_rslora`, `use_dora` and whatever else peft knows.
    """
    return import_peft().LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, **more)


def add_adapters(model: nn.Module, targets: list[str], rank: int, alpha: float, dropout: float, **more: Any) -> None:
    """Put adapters into `model` in place and freeze everything else; `more` as in `adapter_config`."""
    import_peft().inject_adapter_in_model(adapter_config(targets, rank, alpha, dropout, **more), model)
    take_adapted(model)


def wrap_with_adapters(model: Any, config: Any) -> Any:
    """A pretrained model as a `peft.PeftModel`, its own weights frozen."""
    with warnings.catch_warnings():
        # peft asks transformers by a name that transformers has just deprecated; nothing for a user to act on.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        adapted = import_peft().get_peft_model(model, config)
    take_adapted(adapted)
    return adapted
