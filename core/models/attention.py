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
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD,
            k_BHTD,
            v_BHTD,
            attn_mask=mask_B1TT,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=past is None and mask_B1TT is None,
        )
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
