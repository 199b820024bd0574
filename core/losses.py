"""The loss of a language model: mean cross-entropy of the next token."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean over all B × T positions, in nats, shape ()."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
