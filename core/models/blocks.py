"""The layers of a model, whatever its family calls them, and the matrices in them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn


def blocks_of(model: nn.Module) -> nn.ModuleList:
    """The layers of a model: the longest list that is in no other list."""
    return max(_outermost_lists(model), key=len, default=nn.ModuleList())


def linear_kinds() -> tuple[type[nn.Module], ...]:
    """The classes of linear layers in pretrained models; transformers' own keeps its matrix as (in, out)."""
    from transformers.pytorch_utils import Conv1D

    return (nn.Linear, Conv1D)


def _outermost_lists(module: nn.Module) -> Iterator[nn.ModuleList]:
    # Within a block there may be a longer one: of experts.
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)
