"""The loss of a head's logits without all of them in memory: a stretch of tokens at a time, gradients made on the way.

Shapes: N tokens, C width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from core.losses import UNLEARNT, num_right

LOGITS_AT_ONCE = 1 << 25
"""Numbers: enough that a matrix's gradient is seldom added up of more than a few stretches."""

WORTHWHILE_LOGITS = 1 << 22
"""Fewer are done in one go sooner than in stretches."""


def is_worthwhile(num_tokens: int, vocab_size: int) -> bool:
    """Whether the logits of so many tokens are better not kept."""
    return num_tokens * vocab_size >= WORTHWHILE_LOGITS


def needs_scale(device: str) -> bool:
    """Whether gradients of autocast's type vanish unless the loss is scaled before they are made, as those of fp16."""
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) is torch.float16


def loss_of_head(x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    """Mean cross-entropy of the targets that are learnt, in nats, shape ().

    The same as `next_token_loss` of the logits, but for the order in which a stretch's numbers are added. Products are
    of autocast's type, everything between them is float32.
    """
    loss: Tensor = _HeadLoss.apply(x_NC, weight_VC, bias_V, targets_N)  # type: ignore[no-untyped-call]  # torch's own
    return loss


def measure_of_head(x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The same loss without gradients, and how many of the targets that are learnt were the likeliest token."""
    total, right = torch.zeros((), device=x_NC.device), torch.zeros((), dtype=torch.long, device=x_NC.device)
    for part in _stretches(len(targets_N), len(weight_VC)):
        logits = F.linear(x_NC[part], weight_VC, bias_V)
        total += F.cross_entropy(logits.float(), targets_N[part], ignore_index=UNLEARNT, reduction="sum")
        right += num_right(logits, targets_N[part])
    return total / (targets_N != UNLEARNT).sum(), right


class _HeadLoss(torch.autograd.Function):
    """What backward would need is twice the logits; what it needs here is as large as what came in."""

    @staticmethod
    def forward(ctx: Any, x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
        """See `loss_of_head`."""
        kind = x_NC.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VC.dtype
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        # Once, not for each stretch.
        x_in, weight_in = x_NC.to(dtype), weight_VC.to(dtype)
        bias_in = None if bias_V is None else bias_V.to(dtype)
        is_learnt_N = targets_N != UNLEARNT
        share_N = is_learnt_N / is_learnt_N.sum()
        at_N = targets_N.clamp_min(0)[:, None]
        grad_x = torch.empty_like(x_in) if needs_x else None
        grad_weight: Tensor | None = None
        grad_bias = torch.zeros_like(bias_V) if bias_V is not None and needs_bias else None
        total = torch.zeros((), device=x_NC.device)
        for part in _stretches(len(targets_N), len(weight_VC)):
            x, at, share = x_in[part], at_N[part], share_N[part]
            logs = F.log_softmax(F.linear(x, weight_in, bias_in), -1, dtype=torch.float32)
            total -= torch.dot(logs.gather(1, at)[:, 0], share)
            # Of a softmax's cross-entropy: the probabilities, less one for the token that came.
            slope = logs.exp_().scatter_add_(1, at, logs.new_full((len(x), 1), -1.0)).mul_(share[:, None])
            if grad_bias is not None:
                grad_bias += slope.sum(0)
            slope = slope.to(dtype)
            del logs
            if grad_x is not None:
                torch.mm(slope, weight_in, out=grad_x[part])
            if needs_weight:
                found = slope.T @ x
                grad_weight = found.to(weight_VC.dtype) if grad_weight is None else grad_weight.add_(found)
                del found
            # Or the next stretch would be made beside it.
            del slope
        # Not among the saved: those stay referred to while they are handed on, and would be copied for it.
        ctx.made = grad_x, grad_weight, grad_bias
        ctx.x_type = x_NC.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Each as it was made, times what the loss is worth."""
        (grad_x, grad_weight, grad_bias), ctx.made = ctx.made, None
        for made in (grad_x, grad_weight, grad_bias):
            if made is not None:
                made.mul_(grad)
        return None if grad_x is None else grad_x.to(ctx.x_type), grad_weight, grad_bias, None


def _stretches(num_tokens: int, vocab_size: int) -> list[slice]:
    """Of one length, but for the last."""
    count = -(-num_tokens * vocab_size // LOGITS_AT_ONCE)
    length = -(-num_tokens // count)
    return [slice(begin, begin + length) for begin in range(0, num_tokens, length)]
