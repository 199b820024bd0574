"""A model as a configuration describes it, without a run around it."""

from __future__ import annotations

from pathlib import Path

import torch

from core.config import TrainingConfig
from core.models import LanguageModel
from core.parts import build_model

VOCAB_SIZE = 50


def check_cache_changes_nothing(model: LanguageModel, ids_BT: torch.Tensor) -> None:
    """A model that is told of its tokens bit by bit predicts what it does of all of them at once."""
    with torch.inference_mode():
        whole_BTV, _ = model(ids_BT)
        logits_BV, cache = model.predict(ids_BT[:, :5])
        torch.testing.assert_close(logits_BV, whole_BTV[:, 4], rtol=1e-4, atol=1e-5)
        for position in range(5, ids_BT.shape[1]):
            logits_BV, cache = model.predict(ids_BT[:, position : position + 1], cache)
            torch.testing.assert_close(logits_BV, whole_BTV[:, position], rtol=1e-4, atol=1e-5)


def fresh_model(config: TrainingConfig) -> LanguageModel:
    """The same weights every time; from scratch, with an alphabet of 50."""
    torch.manual_seed(config.seed)
    base = Path(config.base_model) if config.is_pretrained else None
    return build_model(config, None if base else VOCAB_SIZE, base)
