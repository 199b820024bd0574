"""The models that can be trained, behind one face."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn


class LanguageModel(nn.Module, ABC):
    """What the loop, the checkpoints and generation ask of every model.

    Shapes: B batch, T time, V vocabulary.
    """

    name: ClassVar[str]
    """As checkpoint names show it: `from_scratch`, `gpt2_lora`, …"""

    weights_file: str = "model.safetensors"
    """Where a checkpoint keeps `tensors()`."""

    vocab_size: int

    max_context: int
    """Most tokens that one forward pass can see."""

    @abstractmethod
    def forward(self, ids_BT: Tensor, targets_BT: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and, given targets, their mean loss in nats."""

    @abstractmethod
    def predict(self, ids_BT: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits (B, V) of the token after the last, and the cache that lets the next call pass only new tokens."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep of the weights, by name, without copies."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave.

        Raises:
            CheckpointMismatch: names or shapes are not this model's.
        """

    @abstractmethod
    def describe(self, folder: Path) -> None:
        """Write the configuration files that belong beside the weights."""
