"""What an optimizer remembers of each parameter, by the parameter's name: taken out, and put back once it is checked.

A checkpoint may have been made by anyone: a moment that torch does not expect would be met in the middle of an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import CheckpointMismatch

_SEPARATOR = "::"
_NEEDED = frozenset({"step", "exp_avg", "exp_avg_sq"})
_KNOWN = _NEEDED | {"max_exp_avg_sq"}
"""AdamW's."""


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Moments by parameter name, and each group's settings with the names of its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}{_SEPARATOR}{key}": torch.as_tensor(value)
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }
    settings = [
        {
            **{key: value for key, value in group.items() if key != "params"},
            "names": [names[id(p)] for p in group["params"]],
        }
        for group in optimizer.param_groups
    ]
    return moments, settings


def restore_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, saved: dict[str, Any]) -> None:
    """Put moments back; the settings stay as the configuration made them, so that overrides hold.

    Raises:
        CheckpointMismatch: other parameters are trained than were saved, or a moment is none of theirs.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}
    if list(trained) != [name for group in saved["settings"] for name in group["names"]]:
        raise CheckpointMismatch("the checkpoint's optimizer trained other parameters than this run would")
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in saved["moments"].items():
        name, _, moment = key.rpartition(_SEPARATOR)
        moments.setdefault(name, {})[moment] = value
    for name, of_one in moments.items():
        if name not in trained:
            raise CheckpointMismatch(f"the checkpoint's optimizer has moments of {name[:100]!r}, which does not train")
        try:
            check_moments(name, of_one, trained[name])
        except ValueError as error:
            raise CheckpointMismatch(f"the checkpoint's optimizer state does not fit this model: {error}") from None
    for name, of_one in moments.items():
        _put_back(optimizer, trained[name], of_one)


def check_moments(name: str, moments: Mapping[Any, Any], parameter: Tensor) -> None:
    """Whether these are AdamW's moments of a parameter.

    Raises:
        ValueError: they are not; the message says why.
    """
    if not moments:
        return
    if not _NEEDED <= moments.keys() <= _KNOWN:
        raise ValueError(f"{name} does not have the moments that AdamW keeps")
    for key, value in moments.items():
        shape = torch.Size() if key == "step" else parameter.shape
        if key == "step" and type(value) in (int, float):
            continue
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            raise ValueError(f"{key} of {name} is not of shape {tuple(shape)}")


def _put_back(optimizer: torch.optim.Optimizer, parameter: Tensor, moments: Mapping[str, Tensor]) -> None:
    for moment, value in moments.items():
        # AdamW's step count lives on the host unless it is fused, whatever device the moments are on.
        place = value.device if value.dim() == 0 and moment == "step" else parameter.device
        kind = value.dtype if moment == "step" else parameter.dtype
        optimizer.state[parameter][moment] = value.to(place, kind).clone()
