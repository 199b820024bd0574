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
    def forward(
        self, ids_BT: Tensor, targets_BT: Tensor | None = None, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits (B, T, V) and, given targets, their mean loss in nats.

        Args:
            targets_BT: The token that follows each; those of -100 count for nothing.
            segments_BT: Which example each token of a row belongs to: a number that rises along T. Examples do not see
                one another, and each has positions from 0 on. None: every row is one example.
        """

    @property
    def supports_segments(self) -> bool:
        """Whether `forward` takes segments, so that several examples can share a row."""
        return True

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
