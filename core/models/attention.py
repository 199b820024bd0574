"""Causal self-attention, and what keeps examples that share a row from seeing one another.

Shapes: B batch, T time, C width (n_embd), H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

KeyValue = tuple[Tensor, Tensor]

Turn = Callable[[Tensor], Tensor]
"""What is done to queries and keys (B, H, T, D) before they meet: rotated to their positions, say."""


SHORT = 512
"""Tokens up to which two products and a softmax are sooner done, forward and backward, than torch's kernel for CPUs."""


def is_short(q_BHTD: Tensor, k_BHTD: Tensor) -> bool:
    """Whether `attend_in_products` is the sooner way: in bf16, on a CPU, where gradients are wanted."""
    num_queries, num_keys = q_BHTD.shape[2], k_BHTD.shape[2]
    if q_BHTD.device.type != "cpu" or not (torch.is_grad_enabled() and q_BHTD.requires_grad):
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q_BHTD.dtype
    return dtype is torch.bfloat16 and num_queries == num_keys <= SHORT


def attend_in_products(
    q_BHTD: Tensor,
    k_BHTD: Tensor,
    v_BHTD: Tensor,
    mask_B1TT: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    *,
    is_causal: bool = True,
) -> Tensor:
    """Mixed values (B, H, T, D), as of `scaled_dot_product_attention` but that scores are rounded to bf16.

    Args:
        mask_B1TT: True where one may look at the other, or numbers to add to the scores.
        scale: Of the scores; by default one over the root of D.
        is_causal: None looks ahead; with a mask, that says it.
    """
    B, H, T, D = q_BHTD.shape
    scale = D**-0.5 if scale is None else scale
    q, k, v = (part.to(torch.bfloat16).flatten(0, 1) for part in (q_BHTD, k_BHTD, v_BHTD))
    if mask_B1TT is None:
        hidden = q.new_full((T, T), -torch.inf).triu(1) if is_causal else q.new_zeros(T, T)
        scores = torch.baddbmm(hidden, q, k.transpose(1, 2), alpha=scale)
    else:
        if mask_B1TT.dtype is torch.bool:
            mask_B1TT = q.new_zeros(mask_B1TT.shape).masked_fill_(~mask_B1TT, -torch.inf)
        scores = (torch.bmm(q, k.transpose(1, 2)).view(B, H, T, T) * scale + mask_B1TT.to(q.dtype)).flatten(0, 1)
    shares = torch.softmax(scores, -1, dtype=torch.float32).to(q.dtype)
    return torch.bmm(F.dropout(shares, dropout), v).view(B, H, T, D)


class Attention(nn.Module):
    """Causal self-attention over all heads at once."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)

    def forward(
        self, x_BTC: Tensor, past: KeyValue | None = None, mask_B1TT: Tensor | None = None, turn: Turn | None = None
    ) -> tuple[Tensor, KeyValue]:
        """Mixed values (B, T, C), and the keys and values seen so far, each (B, H, T_all, D).

        Args:
            past: Of the tokens before these, which then come one at a time.
            mask_B1TT: Which tokens each may look at; without one, all up to itself.
        """
        B, T, C = x_BTC.shape
        q_BHTD, k_BHTD, v_BHTD = self.qkv(x_BTC).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if turn is not None:
            q_BHTD, k_BHTD = turn(q_BHTD), turn(k_BHTD)
        if past is not None:
            k_BHTD = torch.cat([past[0], k_BHTD], dim=2)
            v_BHTD = torch.cat([past[1], v_BHTD], dim=2)
        assert past is None or (T == 1 and mask_B1TT is None), "with a cache, tokens come one at a time"
        dropout = self.dropout if self.training else 0.0
        if is_short(q_BHTD, k_BHTD):
            y_BHTD = attend_in_products(q_BHTD, k_BHTD, v_BHTD, mask_B1TT, dropout)
        else:
            is_causal = past is None and mask_B1TT is None
            y_BHTD = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, mask_B1TT, dropout, is_causal)
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, C)), (k_BHTD, v_BHTD)


def segment_positions(segments_BT: Tensor) -> Tensor:
    """Place of each token within its segment, counted from 0, shape (B, T).

    Args:
        segments_BT: Tokens of one number belong together; numbers rise along T.
    """
    places_BT = torch.arange(segments_BT.shape[1], device=segments_BT.device).expand_as(segments_BT)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    return places_BT - torch.where(begins_BT, places_BT, 0).cummax(1).values


def segment_mask(segments_BT: Tensor) -> Tensor:
    """Whether token t may look at token s: they are of one segment and s is not after t; shape (B, 1, T, T)."""
    same_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same_BTT.tril()[:, None]
