"""Muon: momentum, made orthogonal. For matrices between layers, and for nothing else.

An update of AdamW is dominated by a few directions of its matrix; with all singular values of an update near one, rare
directions learn as fast as common ones. torch has a Muon, too; this one also knows matrices that are kept as (in, out),
as GPT-2's are, for which torch's would take the wrong side for the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95

_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.775, 2.0315
"""Of the polynomial a·x + b·x³ + c·x⁵, whose slope at zero is as steep as it can be while singular values from 0 to 1
end up between about 0.7 and 1.2: five times in a row it lifts even those of a hundredth. Exactly one is not needed."""

_LEAST_NORM = 1e-7

_NUMBERS_AT_ONCE = 1 << 20
"""Of small matrices, what calls cost is more than what they compute."""


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose direction is made orthogonal; it keeps one `momentum_buffer` per matrix.

    Args:
        parameters: Matrices, or groups of them. A group with `inputs_first` has matrices of shape (in, out).
        lr: Of a square matrix, the spectral norm of an update; of one with more outputs than inputs, as much more as
            keeps the change of an output the same.
        weight_decay: Pull towards zero, times the rate.
    """

    def __init__(self, parameters: Iterable[Any], *, lr: float, weight_decay: float) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": MOMENTUM, "inputs_first": False}
        super().__init__(parameters, defaults)
        assert all(p.dim() == 2 for group in self.param_groups for p in group["params"]), "Muon is for matrices"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            with_gradients = [parameter for parameter in group["params"] if parameter.grad is not None]
            for alike in _in_batches(with_gradients):
                self._update(alike, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        """Of matrices of one shape."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        # Nesterov: one step further along the momentum than it has come.
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        num_out, num_in = parameters[0].shape[::-1] if group["inputs_first"] else parameters[0].shape
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * max(1.0, num_out / num_in) ** 0.5
        for parameter, step in zip(parameters, orthogonalized(torch.stack(ahead)), strict=True):
            parameter.add_(step, alpha=-rate)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly U Vᵀ of each matrix U S Vᵀ, shape (N, rows, columns), in bfloat16: Newton and Schulz's iteration.

    It only multiplies matrices, in half the bits: its own error is far larger than theirs.
    """
    # On the shorter side, products are smallest.
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if is_tall else matrices).to(torch.bfloat16)
    # No singular value is larger than the norm of all of them.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if is_tall else x


def _in_batches(parameters: list[Tensor]) -> Iterator[list[Tensor]]:
    """Matrices of one shape together, no more of them than are small: their updates are copies, and many at a time."""
    alike: dict[tuple[torch.Size, torch.device], list[Tensor]] = {}
    for parameter in parameters:
        alike.setdefault((parameter.shape, parameter.device), []).append(parameter)
    for (shape, _), all_of_it in alike.items():
        count = max(1, _NUMBERS_AT_ONCE // shape.numel())
        for begin in range(0, len(all_of_it), count):
            yield all_of_it[begin : begin + count]
