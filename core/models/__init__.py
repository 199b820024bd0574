"""The models that can be trained, behind one face."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from core.losses import num_right
from core.models.head_loss import is_worthwhile, loss_of_head, measure_of_head, needs_scale


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

    def loss(self, ids_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """The mean loss alone, shape (): what trains on it need not hold the logits of a large vocabulary."""
        if not needs_scale(ids_BT.device.type) and (head := self._long_head(ids_BT, segments_BT)):
            return loss_of_head(*head, targets_BT.flatten())
        loss: Tensor = self(ids_BT, targets_BT, segments_BT)[1]
        return loss

    def measure(self, ids_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The mean loss, and how many of the targets that are learnt were the likeliest token; each of shape ()."""
        if head := self._long_head(ids_BT, segments_BT):
            return measure_of_head(*head, targets_BT.flatten())
        logits_BTV, loss = self(ids_BT, targets_BT, segments_BT)
        return loss, num_right(logits_BTV, targets_BT)

    def _long_head(self, ids_BT: Tensor, segments_BT: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """What `before_head` gives, of all tokens in one line, where it is better not to keep all their logits."""
        if not is_worthwhile(ids_BT.numel(), self.vocab_size):
            return None
        head = self.before_head(ids_BT, segments_BT)
        return None if head is None else (head[0].flatten(0, 1), *head[1:])

    @abstractmethod
    def before_head(
        self, ids_BT: Tensor, segments_BT: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """What the head is given (B, T, C), its matrix (V, C) and its bias (V,); None if it does more than that."""

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
