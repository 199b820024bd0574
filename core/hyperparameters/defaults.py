"""Defaults that depend on other settings, filled in before anything is checked: what is given may be any JSON value."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from core.hyperparameters import from_json
from core.hyperparameters.model import NONE_GIVEN, PRETRAINED

MOST_STEPS = 10_000_000
"""Of a run that is measured in epochs, until its source has been counted."""

_PRETRAINED = {
    "batch_size": 8,
    "block_size": 128,
    "training_steps": 200,
    "eval_interval": 50,
    "eval_iters": 10,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
}
_PRETRAINED_TEST = {
    **_PRETRAINED,
    "batch_size": 2,
    "block_size": 32,
    "training_steps": 10,
    "eval_interval": 5,
    "eval_iters": 2,
}

DEFAULTS: dict[tuple[str, bool], dict[str, int]] = {
    ("from_scratch", False): {
        "batch_size": 16,
        "block_size": 128,
        "training_steps": 1000,
        "eval_interval": 100,
        "eval_iters": 10,
        "n_embd": 128,
        "n_head": 4,
        "n_layer": 4,
    },
    ("from_scratch", True): {
        "batch_size": 4,
        "block_size": 32,
        "training_steps": 20,
        "eval_interval": 10,
        "eval_iters": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
    },
    ("gpt2", False): _PRETRAINED,
    ("gpt2", True): _PRETRAINED_TEST,
    ("causal_lm", False): _PRETRAINED,
    ("causal_lm", True): _PRETRAINED_TEST,
}
"""(model_type, test_mode) → the defaults that depend on them. Pretrained models have their own three sizes."""


def filled(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is given and not None, and the defaults that follow from it; what is wrong with it is said elsewhere."""
    settings = {name: value for name, value in given.items() if value is not None}
    _name_after_the_first(settings)
    if "num_epochs" in settings:
        settings.setdefault("training_steps", MOST_STEPS)
    model_type = settings.get("model_type", "from_scratch")
    if isinstance(model_type, str):
        _follow_the_model(settings, model_type)
    steps = _whole(settings.get("training_steps"))
    if steps is not None:
        # A tenth of the run, so that a short run also reaches its peak rate.
        settings.setdefault("warmup_steps", min(100, max(1, steps // 10)))
    return settings


def _follow_the_model(settings: dict[str, Any], model_type: str) -> None:
    for name, value in DEFAULTS.get((model_type, _is_true(settings.get("test_mode"))), {}).items():
        settings.setdefault(name, value)
    if model_type in PRETRAINED:
        # GPT-2 is a model by itself, and the default; of the others there are thousands.
        if model_type != "gpt2":
            settings.setdefault("base_model", NONE_GIVEN)
        settings.setdefault("learning_rate", 2e-4 if _is_true(settings.get("use_lora")) else 3e-5)


def _name_after_the_first(settings: dict[str, Any]) -> None:
    """A run on several sources goes by the name of the first."""
    with suppress(ValueError, LookupError, TypeError, AttributeError):
        sources = from_json(settings.get("sources", ()))
        if sources:
            settings.setdefault("source", sources[0]["source"])


def _is_true(value: Any) -> bool:
    # Not str of anything: that of a deeply nested list would recurse as deep.
    if isinstance(value, str):
        return value.lower() in {"1", "true", "t", "yes", "y", "on"}
    return isinstance(value, int | float) and value == 1


def _whole(value: Any) -> int | None:
    """A number of steps, also as a shell has it; of more digits than any bound it is none."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) <= 10 else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
