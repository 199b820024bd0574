"""Models from scratch: a small transformer over characters.

The class names are historic: what began as a table of bigrams grew attention, and kept its name in every checkpoint.

Shapes: B batch, T time, C width (n_embd), H heads, D width of a head, V vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import CheckpointMismatch
from core.losses import next_token_loss
from core.models import LanguageModel
from core.models.lora import add_adapters

KeyValue = tuple[Tensor, Tensor]


class Attention(nn.Module):
    """Causal self-attention over all heads at once."""

    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.n_head = n_head
        self.dropout = dropout
        self.qkv = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, x_BTC: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """Mixed values (B, T, C), and the keys and values seen so far, each (B, H, T_all, D)."""
        B, T, C = x_BTC.shape
        q_BHTD, k_BHTD, v_BHTD = self.qkv(x_BTC).view(B, T, 3, self.n_head, C // self.n_head).permute(2, 0, 3, 1, 4)
        if past is not None:
            k_BHTD = torch.cat([past[0], k_BHTD], dim=2)
            v_BHTD = torch.cat([past[1], v_BHTD], dim=2)
        assert past is None or T == 1, "with a cache, tokens come one at a time"
        y_BHTD = F.scaled_dot_product_attention(
            q_BHTD, k_BHTD, v_BHTD, dropout_p=self.dropout if self.training else 0.0, is_causal=past is None
        )
        return self.out(y_BHTD.transpose(1, 2).reshape(B, T, C)), (k_BHTD, v_BHTD)


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

    def forward(self, x_BTC: Tensor, past: KeyValue | None = None) -> tuple[Tensor, KeyValue]:
        """The same shape, and the block's keys and values."""
        mixed_BTC, seen = self.attention(self.norm_attention(x_BTC), past)
        x_BTC = x_BTC + self.dropout(mixed_BTC)
        return x_BTC + self.dropout(self.down(F.gelu(self.up(self.norm_mlp(x_BTC))))), seen


class BigramLanguageModel(LanguageModel):
    """A decoder-only transformer with learned positions.

    Args:
        vocab_size: Characters in the alphabet.
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
        super().__init__()
        self.vocab_size = vocab_size
        self.max_context = block_size
        self.shape = {"n_embd": n_embd, "n_head": n_head, "n_layer": n_layer}
        self.token_embedding = nn.Embedding(vocab_size, n_embd)
        self.position_embedding = nn.Embedding(block_size, n_embd)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, dropout) for _ in range(n_layer))
        self.norm = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size)
        self._initialize(n_layer)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and the loss."""
        x_BTC, _ = self._hidden(ids_BT, None)
        logits_BTV = self.head(x_BTC)
        return logits_BTV, None if targets_BT is None else next_token_loss(logits_BTV, targets_BT)

    def predict(self, ids_BT: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, V) of the next token; the cache is one pair of keys and values per block."""
        x_BTC, cache = self._hidden(ids_BT, cache)
        return self.head(x_BTC[:, -1]), cache

    def tensors(self) -> dict[str, Tensor]:
        """All weights."""
        return dict(self.state_dict())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """All weights, by name and shape; a model that was built without memory takes these very tensors."""
        try:
            if self.head.weight.is_meta:
                self.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
            else:
                self.load_state_dict(tensors)
        except RuntimeError as error:
            raise CheckpointMismatch(f"the weights are not of this model's shape: {error}") from None

    def describe(self, folder: Path) -> None:
        """Write `config.json` with the model's shape."""
        config = {
            "model_type": f"ratchet_{self.name}",
            "vocab_size": self.vocab_size,
            "block_size": self.max_context,
            **self.shape,
        }
        (folder / "config.json").write_text(json.dumps(config, indent=2))

    def _hidden(self, ids_BT: Tensor, cache: list[KeyValue] | None) -> tuple[Tensor, list[KeyValue]]:
        num_past = cache[0][0].shape[2] if cache else 0
        positions_T = torch.arange(num_past, num_past + ids_BT.shape[1], device=ids_BT.device)
        x_BTC = self.dropout(self.token_embedding(ids_BT) + self.position_embedding(positions_T))
        seen = []
        for number, block in enumerate(self.blocks):
            x_BTC, key_value = block(x_BTC, cache[number] if cache else None)
            seen.append(key_value)
        return self.norm(x_BTC), seen

    def _initialize(self, n_layer: int) -> None:
        """GPT-2's rule: what adds to the residual stream starts smaller, so that its variance stays level."""
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            adds_back = name.endswith(("attention.out.weight", "down.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * n_layer) ** 0.5 if adds_back else 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class BigramLanguageModelLoRA(BigramLanguageModel):
    """The same model with its large matrices frozen under low-rank adapters.

    Random matrices cannot be adapted to much, so embeddings, norms and the head stay trainable: that is what lets a
    from-scratch model write coherent text under LoRA.
    """

    name: ClassVar[str] = "from_scratch_lora"

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_embd: int,
        n_head: int,
        n_layer: int,
        dropout: float = 0.0,
        *,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
    ) -> None:
        super().__init__(vocab_size, block_size, n_embd, n_head, n_layer, dropout)
        add_adapters(self, ["qkv", "out", "up", "down"], lora_rank, lora_alpha, lora_dropout)
        for part in (self.token_embedding, self.position_embedding, self.norm, self.head):
            part.requires_grad_(True)
        for block in self.blocks:
            assert isinstance(block, Block)
            block.norm_attention.requires_grad_(True)
            block.norm_mlp.requires_grad_(True)
