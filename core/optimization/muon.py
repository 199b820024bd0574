"""Muon: momentum, made orthogonal. For matrices between layers, and for nothing else.

An update of AdamW is dominated by a few directions of its matrix; with all singular values of an update near one, rare
directions learn as fast as common ones. torch has a Muon, too; this one also knows matrices that are kept as (in, out),
as GPT-2's are, for which torch's would take the wrong side for the output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95

_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.775, 2.0315
"""Of the polynomial a·x + b·x³ + c·x⁵, whose slope at zero is as steep as it can be while singular values from 0 to 1
end up between about 0.7 and 1.2: five times in a row it lifts even those of a hundredth. Exactly one is not needed."""

_LEAST_NORM = 1e-7


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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        # Nesterov: one step further along the momentum than it has come.
        ahead = gradient.lerp(state["momentum_buffer"], group["momentum"])
        num_out, num_in = reversed(parameter.shape) if group["inputs_first"] else parameter.shape
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(orthogonalized(ahead), alpha=-group["lr"] * max(1.0, num_out / num_in) ** 0.5)


def orthogonalized(matrix: Tensor) -> Tensor:
    """Nearly U Vᵀ of the matrix U S Vᵀ, of the same shape, in bfloat16: Newton and Schulz's iteration.

    It only multiplies matrices, in half the bits: its own error is far larger than theirs.
    """
    # On the shorter side, products are smallest.
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if is_tall else matrix).to(torch.bfloat16)
    # No singular value is larger than the norm of all of them.
    x = x / x.norm().clamp(min=_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if is_tall else x
