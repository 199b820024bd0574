"""What a run makes smaller, and how far it has come: the next token's loss, or that of preferences.

Shapes: B batch, T time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from core.losses import log_likelihood, preference_loss
from core.models import LanguageModel
from core.models.causal_lm import CausalLM
from core.tokens.batches import Batch


@dataclass(slots=True)
class Measured:
    """Sums over batches; `right` of `learnt` is the accuracy, `loss` in nats is weighted by what was learnt."""

    loss: float = 0.0
    learnt: int = 0
    right: int = 0

    def add(self, loss: float, learnt: int, right: int) -> None:
        """One more batch: its mean loss, over how many, and how many of them were right."""
        self.loss += loss * learnt
        self.learnt += learnt
        self.right += right

    @property
    def mean_loss(self) -> float:
        """Nats per token, or per pair."""
        return self.loss / self.learnt

    @property
    def accuracy(self) -> float:
        """The part that was right."""
        return self.right / self.learnt


class Objective(Protocol):
    """One way to learn."""

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """The mean over what a batch teaches, shape ()."""
        ...

    def measure(self, model: LanguageModel, batch: Batch, into: Measured) -> None:
        """Add a batch of an evaluation; the model is in eval mode, and no gradients are kept."""
        ...


class NextToken:
    """The mean loss of the tokens that are learnt: language modelling, and supervised fine-tuning."""

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """In nats per token."""
        return model.loss(batch.ids_BT, batch.targets_BT, batch.segments_BT)

    def measure(self, model: LanguageModel, batch: Batch, into: Measured) -> None:
        """Right is the token that was the likeliest."""
        loss, right = model.measure(batch.ids_BT, batch.targets_BT, batch.segments_BT)
        into.add(loss.item(), batch.num_targets, int(right))


class Preference:
    """Direct preference optimization against the model that the run began with.

    Args:
        beta: See `core.losses.preference_loss`.
        reference: That model, frozen; None where adapters can be left out of the one that learns.
    """

    def __init__(self, beta: float, reference: LanguageModel | None) -> None:
        self._beta = beta
        self._reference = reference

    def loss(self, model: LanguageModel, batch: Batch) -> Tensor:
        """In nats per pair."""
        return self._compared(model, batch)[0]

    def measure(self, model: LanguageModel, batch: Batch, into: Measured) -> None:
        """Right is the better answer, if it gained on the other."""
        loss, margins = self._compared(model, batch)
        into.add(loss.item(), len(margins), int((margins > 0).sum()))

    def _compared(self, model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), _as_it_began(model, self._reference) as reference:
            theirs_B = log_likelihood(reference(batch.ids_BT)[0], batch.targets_BT)
        ours_B = log_likelihood(model(batch.ids_BT)[0], batch.targets_BT)
        return preference_loss(ours_B, theirs_B, self._beta)


@contextmanager
def _as_it_began(model: LanguageModel, reference: LanguageModel | None) -> Iterator[LanguageModel]:
    """The reference, or the model itself without its adapters; either without dropout."""
    if reference is not None:
        yield reference
        return
    assert isinstance(model, CausalLM), "preferences are taught to pretrained models alone"
    was_training = model.training
    model.eval()
    try:
        with model.without_adapters():
            yield model
    finally:
        model.train(was_training)
