"""A frozen linear layer and its adapter in one go: peft's own layer, with the same parameters under the same names.

What peft writes as two products, a scaling, a sum and casts between them are here sums inside the products, forward and
backward. Shapes: N tokens, I inputs, O outputs, R rank.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from core.libraries import import_peft
from core.models.blocks import linear_kinds


def take_adapted(model: nn.Module) -> None:
    """Let each of peft's adapted layers be one of ours, in place."""
    theirs = import_peft().tuners.lora.Linear
    for module in model.modules():
        if type(module) is theirs and type(module.base_layer) in linear_kinds():
            module.__class__ = _kind()


def adapted(x: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """x Wᵀ + bias + scale · x Aᵀ Bᵀ, shape (…, O), where only x, A and B get gradients.

    Args:
        x: Shape (…, I).
        weight: W, shape (O, I); its view where it is kept as (I, O).
    """
    y: Tensor = _AdaptedProduct.apply(x, weight, bias, a_RI, b_OR, scale)  # type: ignore[no-untyped-call]  # torch's own
    return y


class _AdaptedProduct(torch.autograd.Function):
    """Products are of autocast's type, as those of each layer are."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        """See `adapted`."""
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        x_NI = x.to(dtype).flatten(0, -2)
        w_OI, a, b = weight.to(dtype), a_RI.to(dtype), b_OR.to(dtype)
        inner_NR = x_NI @ a.T
        y_NO = x_NI @ w_OI.T if bias is None else torch.addmm(bias.to(dtype), x_NI, w_OI.T)
        y_NO.addmm_(inner_NR, b.T, alpha=scale)
        ctx.save_for_backward(x_NI, inner_NR, w_OI, a, b)
        ctx.scale, ctx.types = scale, (x.dtype, a_RI.dtype, b_OR.dtype)
        return y_NO.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, A and B."""
        x_NI, inner_NR, w_OI, a, b = ctx.saved_tensors
        of_x, of_a, of_b = ctx.types
        grad_NO = grad.to(x_NI.dtype).flatten(0, -2)
        grad_NR = (grad_NO @ b).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad_NO @ w_OI).addmm_(grad_NR, a).view(*grad.shape[:-1], -1).to(of_x)
        # So turned, its rows are long ones: half the time of the other way round.
        grad_b = (inner_NR.T @ grad_NO).T.contiguous().to(of_b).mul_(ctx.scale)
        return grad_x, None, None, (grad_NR.T @ x_NI).to(of_a), grad_b, None


@cache
def _kind() -> type[Any]:
    """Made once peft is needed: its layer, with a way of its own where there is one plain adapter to train."""
    theirs = import_peft().tuners.lora.Linear

    class AdaptedLinear(theirs):  # type: ignore[misc, valid-type]  # peft has no types here
        """As peft's."""

        def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            """Shape (…, O) of x (…, I)."""
            name = self._only_plain_adapter()
            if args or kwargs or name is None or not torch.is_grad_enabled():
                said: Tensor = super().forward(x, *args, **kwargs)
                return said
            base = self.base_layer
            # GPT-2 and its kin keep their matrices as (in, out).
            weight = base.weight if isinstance(base, nn.Linear) else base.weight.T
            return adapted(x, weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name])

        def _only_plain_adapter(self) -> str | None:
            if self.disable_adapters or self.merged or len(self.active_adapters) != 1:
                return None
            name: str = self.active_adapters[0]
            if name not in self.lora_A or name in self.lora_variant or self.base_layer.weight.requires_grad:
                return None
            drops = isinstance(self.lora_dropout[name], nn.Dropout) and self.training
            has_bias = self.lora_B[name].bias is not None
            return None if drops or has_bias else name

    return AdaptedLinear
