"""In which numbers a run computes: products in a shorter type where that is asked for, weights always in float32."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

LEAST_SCALE = 1.0
"""A loss that still overflows when it is not scaled up at all is no matter of scale."""


class Precision:
    """`fp32`, `bf16` or `fp16`; the last has so few exponents that small gradients need a scale to survive.

    Args:
        name: As in `TrainingConfig.precision`.
        device: Where the run computes.
    """

    def __init__(self, name: str, device: str) -> None:
        self._type = _TYPES.get(name)
        self.product_type = self._type or torch.float32
        self._kind = device.partition(":")[0]
        self._scaler = torch.amp.GradScaler(self._kind) if name == "fp16" else None

    def computing(self) -> AbstractContextManager[Any]:
        """Inside it, products are computed in the shorter type."""
        return torch.autocast(self._kind, self._type) if self._type else nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, scaled if need be."""
        (self._scaler.scale(loss) if self._scaler else loss).backward()  # type: ignore[no-untyped-call]  # torch's own

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Bring the gradients back to their true size, once before an update."""
        if self._scaler:
            self._scaler.unscale_(optimizer)

    def may_overflow(self, norm: float) -> bool:
        """Whether a gradient norm that is no number means that the scale was too large, and no more than that."""
        return self._scaler is not None and not math.isfinite(norm) and self._scaler.get_scale() > LEAST_SCALE

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer's update, or leave it out and scale less if a gradient overflowed."""
        if self._scaler is None:
            optimizer.step()
            return
        self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """What the next update depends on, as plain values."""
        return self._scaler.state_dict() if self._scaler else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` gave; a run that scales now and did not before begins anew."""
        if self._scaler and state:
            self._scaler.load_state_dict(state)
