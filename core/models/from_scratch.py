"""Which of the models from scratch a configuration means."""

from __future__ import annotations

from typing import Any

from core.config import TrainingConfig
from core.models import LanguageModel
from core.models.bigram import BigramLanguageModel, BigramLanguageModelLoRA
from core.models.modern import ModernLanguageModel, ModernLanguageModelLoRA

_KINDS: dict[tuple[str, bool], type[LanguageModel]] = {
    ("classic", False): BigramLanguageModel,
    ("classic", True): BigramLanguageModelLoRA,
    ("modern", False): ModernLanguageModel,
    ("modern", True): ModernLanguageModelLoRA,
}
"""(architecture, use_lora) → its class."""

_SHAPE = ("n_embd", "n_head", "n_layer", "dropout")
_MODERN = ("activation", "qk_norm", "tie_embeddings")
_LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora", "use_dora")


def build_from_scratch(config: TrainingConfig, vocab_size: int) -> LanguageModel:
    """The model, with random weights, on the device that torch makes tensors on.

    Raises:
        ConfigError: `lora_targets` names a layer that is not there.
    """
    names = (*_SHAPE, *(_MODERN if config.architecture == "modern" else ()), *(_LORA if config.use_lora else ()))
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    kind: Any = _KINDS[config.architecture, config.use_lora]
    model: LanguageModel = kind(vocab_size, config.block_size, **settings)
    return model
