"""A moving average of the weights: what a run evaluates and answers with, while it trains on the weights themselves.

Late updates pull the weights to and fro around where they are going; their average is nearer to it. The averages are
kept under the names that the weights have in a checkpoint, so one set can be laid over the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.errors import CheckpointMismatch
from core.models import LanguageModel

AVERAGES_FILE = "ema.safetensors"

_COUNT = "::num_updates"
"""No weight's name has colons in it."""


class Averages:
    """Averages of all weights of a model that train, in fp32 and on its device.

    They need as much memory as those weights, and nothing more: to look through them, the two change places.

    Args:
        model: On the device where it trains.
        decay: What is left of the old average in each update, see `decay_after`.
    """

    def __init__(self, model: LanguageModel, decay: float) -> None:
        self._decay = decay
        self._num_updates = 0
        self._are_in_place = True
        self._averages = {name: parameter.detach().float().clone() for name, parameter in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: LanguageModel) -> None:
        """Take in the weights that an optimizer's update has just made."""
        assert self._are_in_place
        weight = 1 - decay_after(self._num_updates, self._decay)
        torch._foreach_lerp_(list(self._averages.values()), [p.detach() for p in _free(model)], weight)
        self._num_updates += 1

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must keep, without copies."""
        assert self._are_in_place
        return {**self._averages, _COUNT: torch.tensor(self._num_updates)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            CheckpointMismatch: they are averages of other weights.
        """
        assert self._are_in_place
        count = tensors.get(_COUNT)
        if count is None or count.dtype != torch.int64 or count.dim() or not 0 <= int(count) < 2**53:
            raise CheckpointMismatch(f"the checkpoint's {AVERAGES_FILE} does not say how many updates it has seen")
        _check(tensors, self._averages)
        if missing := self._averages.keys() - tensors.keys():
            raise CheckpointMismatch(f"the checkpoint's {AVERAGES_FILE} lacks {min(missing)[:100]!r}, which trains")
        self._num_updates = int(count)
        for name, average in self._averages.items():
            average.copy_(tensors[name])

    @contextmanager
    def swapped(self, model: LanguageModel) -> Iterator[None]:
        """Inside it, the model is its averages; no update and no checkpoint may be made meanwhile."""
        assert self._are_in_place
        self._change_places(model)
        try:
            yield
        finally:
            self._change_places(model)

    def _change_places(self, model: LanguageModel) -> None:
        self._are_in_place = not self._are_in_place
        for (name, average), parameter in zip(list(self._averages.items()), _free(model), strict=True):
            self._averages[name], parameter.data = parameter.data, average


def decay_after(num_updates: int, decay: float) -> float:
    """The decay of the next update: small at first, so that the weights a run began with do not linger."""
    return min(decay, (1 + num_updates) / (10 + num_updates))


def averaged(weights: Mapping[str, Tensor], averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights with the averages of those that trained laid over them: what a run answers with.

    Raises:
        CheckpointMismatch: they are averages of other weights.
    """
    _check(averages, weights)
    return {**weights, **{name: tensor for name, tensor in averages.items() if name != _COUNT}}


def _check(averages: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in averages.items():
        if name == _COUNT:
            continue
        if name not in weights or tensor.shape != weights[name].shape or tensor.dtype != torch.float32:
            raise CheckpointMismatch(
                f"the checkpoint's {AVERAGES_FILE} has an average of {name[:100]!r}, which is not "
                "a weight of this model"
            )


def _free(model: nn.Module) -> list[nn.Parameter]:
    """Always in the same order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _trained(model: LanguageModel) -> dict[str, nn.Parameter]:
    """What trains, by the names that checkpoints use."""
    names = {tensor.data_ptr(): name for name, tensor in model.tensors().items()}
    return {names[parameter.data_ptr()]: parameter for parameter in _free(model)}
