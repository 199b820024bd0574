"""What an optimizer remembers of each parameter, by the parameter's name: taken out, and put back once it is checked.

A checkpoint may have been made by anyone: a moment that torch does not expect would be met in the middle of an update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import CheckpointMismatch

_SEPARATOR = "::"


@dataclass(frozen=True, slots=True)
class Kept:
    """What a kind of optimizer keeps of a parameter."""

    by: str
    needed: frozenset[str]
    known: frozenset[str]


ADAMW = Kept("AdamW", frozenset({"step", "exp_avg", "exp_avg_sq"}), frozenset({"max_exp_avg_sq"}))
MUON = Kept("Muon", frozenset({"momentum_buffer"}), frozenset())

Moments = Mapping[str, Tensor]


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Moments by parameter name, and each group's settings with the names of its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[id(parameter)]}{_SEPARATOR}{key}": torch.as_tensor(value)
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
        if not _is_constant(key)
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
    places = {
        names[id(parameter)]: _Place(optimizer, number, index, parameter)
        for number, group in enumerate(optimizer.param_groups)
        for index, parameter in enumerate(group["params"])
    }
    if list(places) != [name for group in saved["settings"] for name in group["names"]]:
        raise CheckpointMismatch("the checkpoint's optimizer trained other parameters than this run would")
    moments: dict[str, dict[str, Tensor]] = {}
    for key, value in saved["moments"].items():
        name, _, moment = key.rpartition(_SEPARATOR)
        moments.setdefault(name, {})[moment] = value
    for name, of_one in moments.items():
        if name not in places:
            raise CheckpointMismatch(f"the checkpoint's optimizer has moments of {name[:100]!r}, which does not train")
        try:
            places[name].check(name, of_one)
        except ValueError as error:
            raise CheckpointMismatch(f"the checkpoint's optimizer state does not fit this model: {error}") from None
    for name, of_one in moments.items():
        places[name].put_back(of_one)


def check_moments(name: str, moments: Mapping[Any, Any], parameter: Tensor, kept: Kept = ADAMW) -> None:
    """Whether these are an optimizer's moments of a parameter.

    Raises:
        ValueError: they are not; the message says why.
    """
    if not moments:
        return
    if not kept.needed <= moments.keys() <= kept.needed | kept.known:
        raise ValueError(f"{name} does not have the moments that {kept.by} keeps")
    for key, value in moments.items():
        shape = torch.Size() if key == "step" else parameter.shape
        if key == "step" and type(value) in (int, float):
            continue
        if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
            raise ValueError(f"{key} of {name} is not of shape {tuple(shape)}")


@dataclass(frozen=True, slots=True)
class _Place:
    """One parameter in an optimizer: `number` of its group, `index` in that."""

    optimizer: Any
    number: int
    index: int
    parameter: Tensor

    @property
    def is_in_8_bits(self) -> bool:
        """bitsandbytes's: only it knows which tensors it keeps, in which blocks."""
        return hasattr(self.optimizer, "init_state")

    def check(self, name: str, moments: Moments) -> None:
        if self.is_in_8_bits:
            self._check_8_bits(name, moments)
        else:
            group = self.optimizer.param_groups[self.number]
            check_moments(name, moments, self.parameter, MUON if "momentum" in group else ADAMW)

    def put_back(self, moments: Moments) -> None:
        state = self.optimizer.state[self.parameter]
        is_fused = self.optimizer.param_groups[self.number].get("fused")
        for moment, value in moments.items():
            if self.is_in_8_bits:
                # Its step is a plain number, and its tensors are of types that no parameter has.
                state[moment] = int(value) if moment == "step" else value.to(state[moment].device, copy=True)
                continue
            # AdamW's count of steps is on the host, unless it is fused: then it is where the parameter is.
            place = value.device if moment == "step" and not is_fused else self.parameter.device
            kind = value.dtype if moment == "step" else self.parameter.dtype
            # One copy, on memory that torch aligned: what was loaded may be a file's own pages.
            state[moment] = value.to(place, kind, copy=True)

    def _check_8_bits(self, name: str, moments: Moments) -> None:
        """Against what the library makes for this parameter: its kernels believe all sizes."""
        self.optimizer.init_state(self.optimizer.param_groups[self.number], self.parameter, self.number, self.index)
        fresh = {key: value for key, value in self.optimizer.state[self.parameter].items() if not _is_constant(key)}
        if moments.keys() != fresh.keys():
            raise ValueError(f"{name} does not have the moments that AdamW in 8 bits keeps")
        for key, value in fresh.items():
            wanted, found = torch.as_tensor(value), moments[key]
            if found.shape != wanted.shape or found.dtype != wanted.dtype or (key == "step" and int(found) < 1):
                raise ValueError(f"{key} of {name} is not as this optimizer keeps it")


def _is_constant(key: str) -> bool:
    """Of an optimizer in 8 bits, the numbers that its bytes stand for: the same for all, and made by the library."""
    return key.startswith("qmap")
