"""A run's model laid out without memory: what it would be made of, and what its tokens are, without its weights.

Of a base, the configuration, the tokenizer and the headers of the weights are read, and nothing of them is unpacked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from core.bases.gguf_file import is_gguf_folder
from core.config import TrainingConfig
from core.models import LanguageModel
from core.models.causal_lm import CausalLM, _num_positions, _with_adapters
from core.models.folder import read_config, read_weights
from core.models.gguf import config_of, read_header
from core.models.pretrained import (
    _be_quiet,
    _check_counts,
    _check_fit,
    _classes,
    _drops,
    _one_sentence,
    _shape,
    load_tokenizer,
)
from core.parts import build_model
from core.tokens.tokenizer import PretrainedTokenizer

SHARE_NO_ROWS = frozenset({"opt", "bloom"})
"""Families that do not keep examples apart in a row; with weights at hand it is measured, see `CausalLM`."""


class Outline(CausalLM):
    """A pretrained model without weights, on the meta device.

    Args:
        folder: Of the base.
        config: Of the run: says what trains.

    Raises:
        ModelUnavailable: the folder cannot be used.
        ConfigError: `lora_targets` names a layer that is not there.
    """

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        LanguageModel.__init__(self)
        model = _laid_out(folder, config.dropout)
        self.vocab_size = int(model.config.vocab_size)
        self.max_context = _num_positions(model.config)
        self.tokenizer = PretrainedTokenizer(load_tokenizer(folder, model.config), self.vocab_size)
        self.use_lora = config.use_lora
        self.short_name = config.base_model
        model.name_or_path = config.base_model
        self.network = model
        if config.use_lora:
            lora = (config.lora_targets, config.lora_rank, config.lora_alpha, config.lora_dropout)
            with torch.device("meta"):
                self.network = _with_adapters(model, *lora, use_rslora=config.use_rslora, use_dora=config.use_dora)

    @property
    def supports_segments(self) -> bool:
        """What is known of its family."""
        return str(self.network.config.model_type) not in SHARE_NO_ROWS


def outline(config: TrainingConfig, vocab_size: int) -> LanguageModel:
    """A model from scratch on the meta device.

    Raises:
        ConfigError: `lora_targets` names a layer that is not there.
    """
    with torch.device("meta"):
        return build_model(config, vocab_size)


def _laid_out(folder: Path, dropout: float) -> Any:
    """As `core.models.pretrained.load_causal_lm` does it before it takes the weights."""
    is_gguf = is_gguf_folder(folder)
    header = read_header(folder) if is_gguf else None
    said = config_of(folder, header) if header else read_config(folder)
    weights = {} if header else read_weights(folder)
    config_class, model_class = _classes(folder, said)
    _check_counts(folder, said, config_class, len(header.tensors) if header else len(weights))
    _be_quiet()
    with _one_sentence(folder):
        config = config_class(**{**_shape(config_class, said), **_drops(config_class, dropout)})
        with torch.device("meta"):
            model = model_class(config)
        if weights:
            _check_fit(folder, model, {name: t for name, t in weights.items() if t.is_floating_point()})
    model.tie_weights()
    return model
