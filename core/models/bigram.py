"""Models from scratch: a small transformer with learned positions.

The class names are historic: what began as a table of bigrams grew attention, and kept its name in every checkpoint.

Shapes: B batch, T time, C width (n_embd), V vocabulary.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from core.models.attention import Attention, KeyValue
from core.models.scratch import FromScratch, WithAdapters


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each on a normalized copy that is added back."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(n_embd)
        self.attention = Attention(n_embd, n_head, dropout)
        self.norm_mlp = nn.LayerNorm(n_embd)
        self.up = nn.Linear(n_embd, 4 * n_embd)
        self.down = nn.Linear(4 * n_embd, n_embd)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BTC: Tensor, past: KeyValue | None = None, mask_B1TT: Tensor | None = None
    ) -> tuple[Tensor, KeyValue]:
        """The same shape, and the block's keys and values."""
        mixed_BTC, seen = self.attention(self.norm_attention(x_BTC), past, mask_B1TT)
        x_BTC = x_BTC + self.dropout(mixed_BTC)
        return x_BTC + self.dropout(self.down(F.gelu(self.up(self.norm_mlp(x_BTC))))), seen


class BigramLanguageModel(FromScratch):
    """A decoder-only transformer with learned positions.

    Args:
        vocab_size: Tokens there are.
        block_size: Most tokens it can see at once.
        n_embd: Width; divisible by n_head.
        n_head: Attention heads per block.
        n_layer: Blocks.
        dropout: Probability, while training.
    """

    name: ClassVar[str] = "from_scratch"

    def __init__(
        self, vocab_size: int, block_size: int, n_embd: int, n_head: int, n_layer: int, dropout: float = 0.0
    ) -> None:
        super().__init__(vocab_size, block_size, n_embd=n_embd, n_head=n_head, n_layer=n_layer)
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
        self.initialize(n_layer, std=0.02)

    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor, cache: list[KeyValue] | None, mask_B1TT: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """See `FromScratch`."""
        x_BTC = self.dropout(self.token_embedding(ids_BT) + self.position_embedding(positions_BT))
        x_BTC, seen = self.run_blocks(x_BTC, cache, mask_B1TT)
        return self.norm(x_BTC), seen

    @property
    def head_weights(self) -> tuple[Tensor, Tensor]:
        """Its own."""
        return self.head.weight, self.head.bias


class BigramLanguageModelLoRA(WithAdapters, BigramLanguageModel):
    """The same model with its large matrices frozen under low-rank adapters."""

    name: ClassVar[str] = "from_scratch_lora"
