"""What a language model is measured by.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

UNLEARNT = -100
"""As a target: what follows here is given, not learnt."""


def next_token_loss(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the targets that are learnt, in nats, shape ()."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=UNLEARNT)


def log_likelihood(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Sum over each row of the log-probabilities of the targets that are learnt, shape (B,)."""
    nats = F.cross_entropy(
        logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), ignore_index=UNLEARNT, reduction="none"
    )
    return -nats.view_as(targets_BT).sum(-1)


def preference_loss(ours_B: Tensor, theirs_B: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Direct preference optimization (Rafailov et al., 2023, equation 7).

    Args:
        ours_B: Log-likelihoods by the model that learns: the better answers', then the others', B even.
        theirs_B: The same by the model that it began as.
        beta: How dear it is to lead away from that.

    Returns:
        The mean loss, and by how much each better answer is preferred (B / 2,), both in nats.
    """
    better, worse = (ours_B - theirs_B).chunk(2)
    margins = beta * (better - worse)
    return -F.logsigmoid(margins).mean(), margins.detach()


def num_right(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """How many of the targets that are learnt were the likeliest token, shape ()."""
    return ((logits_BTV.argmax(-1) == targets_BT) & (targets_BT != UNLEARNT)).sum()


def num_learnt(targets_BT: Tensor) -> int:
    """Targets that are learnt."""
    return int(torch.count_nonzero(targets_BT != UNLEARNT))
