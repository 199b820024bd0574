"""What all models from scratch share: their face, their cache, their files.

Shapes: B batch, T time, C width (n_embd), V vocabulary.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import CheckpointMismatch
from core.losses import next_token_loss
from core.models import LanguageModel
from core.models.attention import KeyValue, segment_mask, segment_positions
from core.models.lora import ALL_LINEAR, adapter_targets, add_adapters


class FromScratch(LanguageModel):
    """A decoder-only transformer that begins with random weights.

    Args:
        vocab_size: Tokens there are.
        block_size: Most tokens it can see at once.
        shape: Its other measures, as `config.json` has them.
    """

    token_embedding: nn.Embedding
    blocks: nn.ModuleList

    def __init__(self, vocab_size: int, block_size: int, **shape: Any) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.max_context = block_size
        self.shape = shape

    @abstractmethod
    def hidden(
        self, ids_BT: Tensor, positions_BT: Tensor, cache: list[KeyValue] | None, mask_B1TT: Tensor | None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Normalized outputs of the last block (B, T, C), and one pair of keys and values per block.

        Args:
            positions_BT: Of the tokens within their examples; (T,) if they are those of all rows.
        """

    @property
    @abstractmethod
    def head_weights(self) -> tuple[Tensor, Tensor | None]:
        """The head's matrix (V, C) and its bias (V,)."""

    def logits(self, x_BTC: Tensor) -> Tensor:
        """(…, V) from (…, C)."""
        return F.linear(x_BTC, *self.head_weights)

    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and the loss."""
        logits_BTV = self.logits(self.before_head(ids_BT, segments_BT)[0])
        return logits_BTV, None if targets_BT is None else next_token_loss(logits_BTV, targets_BT)

    def before_head(self, ids_BT: Tensor, segments_BT: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """There is no more to its head than that."""
        if segments_BT is None:
            x_BTC, _ = self.hidden(ids_BT, _positions(ids_BT, 0), None, None)
        else:
            x_BTC, _ = self.hidden(ids_BT, segment_positions(segments_BT), None, segment_mask(segments_BT))
        return x_BTC, *self.head_weights

    def predict(self, ids_BT: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, V) of the next token; the cache is one pair of keys and values per block."""
        num_past = cache[0][0].shape[2] if cache else 0
        x_BTC, cache = self.hidden(ids_BT, _positions(ids_BT, num_past), cache, None)
        return self.logits(x_BTC[:, -1]), cache

    def tensors(self) -> dict[str, Tensor]:
        """All weights."""
        return dict(self.state_dict())

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """All weights, by name and shape; a model that was built without memory takes these very tensors."""
        try:
            if self.token_embedding.weight.is_meta:
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

    def initialize(self, n_layer: int, std: float) -> None:
        """Draw all matrices, in the order of their names' declaration; biases are zero.

        GPT-2's rule: what adds to the residual stream starts smaller, so that its variance stays level.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            adds_back = name.endswith(("attention.out.weight", "down.weight"))
            nn.init.normal_(parameter, std=std / (2 * n_layer) ** 0.5 if adds_back else std)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def run_blocks(self, x_BTC: Tensor, cache: list[KeyValue] | None, *given: Any) -> tuple[Tensor, list[KeyValue]]:
        """One block after the other, each with its own part of the cache."""
        seen = []
        for number, block in enumerate(self.blocks):
            x_BTC, key_value = block(x_BTC, cache[number] if cache else None, *given)
            seen.append(key_value)
        return x_BTC, seen

    def adapt(self, rank: int, alpha: float, dropout: float, targets: str = ALL_LINEAR, **more: Any) -> None:
        """Freeze the large matrices of the blocks; those that `targets` names get low-rank adapters.

        Random matrices cannot be adapted to much, so embeddings, norms and the head stay trainable: that is what lets a
        from-scratch model write coherent text under LoRA.

        Args:
            more: `use_rslora` and `use_dora`, see `core.models.lora`.

        Raises:
            ConfigError: `targets` names something else.
        """
        matrices = {name: part for name, part in self.named_modules() if self._is_matrix(name, part)}
        frozen = {id(parameter) for part in matrices.values() for parameter in part.parameters()}
        add_adapters(self, adapter_targets(matrices, targets), rank, alpha, dropout, **more)
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) not in frozen)

    @staticmethod
    def _is_matrix(name: str, part: nn.Module) -> bool:
        return name.startswith("blocks.") and isinstance(part, nn.Linear)


class WithAdapters(FromScratch):
    """Before another class of these: the same model under low-rank adapters, see `FromScratch.adapt`."""

    def __init__(
        self,
        *shape: Any,
        lora_rank: int = 8,
        lora_alpha: float = 16.0,
        lora_dropout: float = 0.0,
        lora_targets: str = ALL_LINEAR,
        use_rslora: bool = False,
        use_dora: bool = False,
        **more: Any,
    ) -> None:
        super().__init__(*shape, **more)
        self.adapt(lora_rank, lora_alpha, lora_dropout, lora_targets, use_rslora=use_rslora, use_dora=use_dora)


def _positions(ids_BT: Tensor, num_past: int) -> Tensor:
    return torch.arange(num_past, num_past + ids_BT.shape[1], device=ids_BT.device)
