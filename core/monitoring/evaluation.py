"""How good a model is on what it learns from, and on what was kept back."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from core.objectives import Measured
from core.parts import Parts
from core.tokens.batches import Which

ShouldStop = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Of both parts, in nats per token or per pair."""

    train_loss: float
    val_loss: float
    val_accuracy: float
    val_perplexity: float | None

    @property
    def losses(self) -> dict[str, float]:
        """What a checkpoint remembers of it."""
        return {"train_loss": self.train_loss, "val_loss": self.val_loss}


def evaluate(parts: Parts, should_stop: ShouldStop = lambda: False, num_parts: int = 1) -> Evaluation | None:
    """Measure `eval_iters` batches of each part, the same ones every time; None if it was told to stop.

    Fixed batches make two evaluations differ by the model alone, and leave no generator in another state. A run that
    keeps averages of its weights is measured through them.

    Args:
        num_parts: In which each batch is computed.
    """
    model = parts.model
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(), parts.averages.swapped(model) if parts.averages else nullcontext():
            train = _measured(parts, "train", should_stop, num_parts)
            val = _measured(parts, "val", should_stop, num_parts) if train else None
    finally:
        model.train(was_training)
    if train is None or val is None:
        return None
    perplexity = math.exp(min(val.mean_loss, 700.0)) if parts.method != "dpo" else None
    return Evaluation(train.mean_loss, val.mean_loss, val.accuracy, perplexity)


def estimate_loss(parts: Parts, should_stop: ShouldStop = lambda: False) -> dict[str, float] | None:
    """The mean losses alone, see `evaluate`."""
    found = evaluate(parts, should_stop)
    return None if found is None else found.losses


def _measured(parts: Parts, which: Which, should_stop: ShouldStop, num_parts: int) -> Measured | None:
    found = Measured()
    for index in range(parts.config.eval_iters):
        if should_stop():
            return None
        batch = parts.data.evaluation(which, index).to(parts.device)
        for part, _ in batch.in_parts(num_parts):
            if part.num_targets:
                with parts.precision.computing():
                    parts.objective.measure(parts.model, part, found)
    return found
