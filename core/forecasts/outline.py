"""A run's model laid out without memory: what it would be made of, and what its tokens are, without its weights.

Of a base, the configuration, the tokenizer and the headers of the weights are read, and nothing of them is unpacked.
"""

from __future__ import annotations

from pathlib import Path

import torch

from core.config import TrainingConfig
from core.models import LanguageModel
from core.models.causal_lm import CausalLM, num_positions, says_scaled_head, with_adapters
from core.models.pretrained import lay_out_causal_lm, load_tokenizer
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
        ConfigError: `lora_targets` names a layer that is not there, or a package is missing.
    """

    def __init__(self, folder: Path, config: TrainingConfig) -> None:
        LanguageModel.__init__(self)
        model = lay_out_causal_lm(folder, config.dropout, in_four_bits=config.quantization == "nf4")
        self.vocab_size = int(model.config.vocab_size)
        self.max_context = num_positions(model.config)
        self.tokenizer = PretrainedTokenizer(load_tokenizer(folder, model.config), self.vocab_size)
        self.use_lora = config.use_lora
        self.short_name = config.base_model
        model.name_or_path = config.base_model
        self.network = model
        if config.use_lora:
            lora = (config.lora_targets, config.lora_rank, config.lora_alpha, config.lora_dropout)
            with torch.device("meta"):
                self.network = with_adapters(model, *lora, use_rslora=config.use_rslora, use_dora=config.use_dora)

    @property
    def has_plain_head(self) -> bool:
        """What is known of its family."""
        return not says_scaled_head(self.network.config)

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
