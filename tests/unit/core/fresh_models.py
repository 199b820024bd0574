"""A model as a configuration describes it, without a run around it."""

from __future__ import annotations

from pathlib import Path

import torch

from core.config import TrainingConfig
from core.models import LanguageModel
from core.parts import build_model

VOCAB_SIZE = 50


def fresh_model(config: TrainingConfig) -> LanguageModel:
    """The same weights every time; from scratch, with an alphabet of 50."""
    torch.manual_seed(config.seed)
    base = Path(config.base_model) if config.is_pretrained else None
    return build_model(config, None if base else VOCAB_SIZE, base)
