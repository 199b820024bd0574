"""Models from scratch with the block that small language models have settled on since GPT-2.

Shapes: B batch, T time, C width (n_embd), D width of a head, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.models.attention import Attention, KeyValue, Turn
from core.models.scratch import FromScratch, WithAdapters

Activation = Literal["swiglu", "relu2"]

ROTARY_BASE = 10_000.0
"""The slowest pair of numbers turns once in 2π × this many tokens: more than any block of ours has."""


def norm(x: Tensor) -> Tensor:
    """Root mean square 1 in the last dimension. Without weights of its own: the matrix that follows has them."""
    return F.rms_norm(x, (x.shape[-1],))


def angles(positions_BT: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines by which queries and keys are turned, each (…, 1, T, D / 2), in fp32.

    Computed in every pass, not kept: a model that is laid out without memory would have to be told to make them anew.
    """
    fast_D = torch.arange(0, width, 2, device=positions_BT.device, dtype=torch.float32) / width
    turned_BTD = positions_BT[..., None].float() * ROTARY_BASE**-fast_D
    return turned_BTD.cos().unsqueeze(-3), turned_BTD.sin().unsqueeze(-3)


def turn(x_BHTD: Tensor, cos_BTD: Tensor, sin_BTD: Tensor, qk_norm: bool) -> Tensor:
    """Rotate pairs of numbers, a number of the first half with its like in the second, by their position.

    With `qk_norm`, queries and keys keep their direction alone: their products then stay bounded whatever the rate, so
    attention cannot collapse onto one token early.
    """
    one, other = x_BHTD.chunk(2, dim=-1)
    turned = torch.cat([one * cos_BTD - other * sin_BTD, other * cos_BTD + one * sin_BTD], dim=-1).to(x_BHTD.dtype)
    return norm(turned) if qk_norm else turned


class ModernBlock(nn.Module):
    """Attention, then a perceptron without biases, each on a normalized copy that is added back."""

    def __init__(self, n_embd: int, n_head: int, dropout: float, activation: Activation) -> None:
        super().__init__()
        self.attention = Attention(n_embd, n_head, dropout)
        # A gate is a third matrix: at two thirds of the width, both kinds have as many weights as GPT-2's perceptron.
        inner = 8 * -(-8 * n_embd // (3 * 8)) if activation == "swiglu" else 4 * n_embd
        self.gate = nn.Linear(n_embd, inner, bias=False) if activation == "swiglu" else None
        self.up = nn.Linear(n_embd, inner, bias=False)
        self.down = nn.Linear(inner, n_embd, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTC: Tensor, past: KeyValue | None = None, mask_B1TT: Tensor | None = None, turn: Turn | None = None
    ) -> tuple[Tensor, KeyValue]:
        """The same shape, and the block's keys and values."""
        mixed_BTC, seen = self.attention(norm(x_BTC), past, mask_B1TT, turn)
        x_BTC = x_BTC + self.dropout(mixed_BTC)
        return x_BTC + self.dropout(self.down(self._activated(norm(x_BTC)))), seen

    def _activated(self, x_BTC: Tensor) -> Tensor:
        if self.gate is not None:
            gated: Tensor = F.silu(self.gate(x_BTC)) * self.up(x_BTC)
            return gated
        # Squared, ReLU grows as a gate times its input does, without the gate's matrix.
        return F.relu(self.up(x_BTC)).square()


class ModernLanguageModel(FromScratch):
    """A decoder-only transformer with rotary positions, RMSNorm and a gated perceptron.

    Args:
        vocab_size: Tokens there are.
        block_size: Most tokens it can see at once.
        n_embd: Width; divisible by n_head, into heads of even width.
        n_head: Attention heads per block.
        n_layer: Blocks.
        dropout: Probability, while training.
        activation: `swiglu`, or `relu2` for the square of ReLU.
        qk_norm: Normalize queries and keys.
        tie_embeddings: One matrix for tokens that come in and tokens that go out.
    """

    name: ClassVar[str] = "from_scratch_modern"

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        n_head: int,
        n_layer: int,
        dropout: float = 0.0,
        *,
        activation: Activation = "swiglu",
        qk_norm: bool = True,
        tie_embeddings: bool = True,
    ) -> None:
        assert n_embd % (2 * n_head) == 0, "the configuration has checked that heads are of one even width"
        super().__init__(
            vocab_size,
            block_size,
            n_embd=n_embd,
            n_head=n_head,
            n_layer=n_layer,
            activation=activation,
            qk_norm=qk_norm,
            tie_embeddings=tie_embeddings,
        )
        self.qk_norm = qk_norm
        self.head_width = n_embd // n_head
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ModernBlock(n_embd, n_head, dropout, activation) for _ in range(n_layer))
        # A tied head is no module: so the matrix has one name, is saved once, and stays tied whatever replaces it.
        self.head = None if tie_embeddings else nn.Linear(n_embd, vocab_size, bias=False)
        # GPT-2's 0.02 is right for its width of 768. At 64, what a block adds would be lost in rounding for the first
        # dozens of updates: with 1 / √C every matrix keeps the size of what goes through it, at any width.
        self.initialize(n_layer, std=n_embd**-0.5)

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor, cache: list[KeyValue] | None, mask_B1TT: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """See `FromScratch`."""
        cos_BTD, sin_BTD = angles(positions_BT, self.head_width)
        turned = partial(turn, cos_BTD=cos_BTD, sin_BTD=sin_BTD, qk_norm=self.qk_norm)
        x_BTC = self.dropout(self.token_embedding(ids_BT))
        x_BTC, seen = self.run_blocks(x_BTC, cache, mask_B1TT, turned)
        return norm(x_BTC), seen

    @property
    def head_weights(self) -> tuple[Tensor, None]:
        """Maybe the embeddings."""
        return (self.token_embedding if self.head is None else self.head).weight, None


class ModernLanguageModelLoRA(WithAdapters, ModernLanguageModel):
    """The same model with its large matrices frozen under low-rank adapters."""

    name: ClassVar[str] = "from_scratch_modern_lora"
