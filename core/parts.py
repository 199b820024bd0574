"""What a run is made of, and how its two largest parts are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from core.config import TrainingConfig, tokens_per_step
from core.data import TokenData, batch
from core.distributed import ALONE, Ranks
from core.models import LanguageModel
from core.models.bigram import BigramLanguageModel, BigramLanguageModelLoRA
from core.optimizer import PlainAdamW
from core.precision import Precision
from core.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of."""

    config: TrainingConfig
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    tokens: TokenData
    device: str
    block_size: int
    precision: Precision
    ranks: Ranks = ALONE
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Of the tokenizer and, where only adapters are kept, of what they belong to."""
    cautions: tuple[str, ...] = ()
    """What else the user should know."""

    @property
    def tokens_per_step(self) -> int:
        """In one update, of all ranks together."""
        return tokens_per_step({**self.config.model_dump(), "block_size": self.block_size})

    def training_batch(self, step: int, number: int) -> tuple[Tensor, Tensor]:
        """This rank's batch `number` of a step: inputs and the tokens that follow them, each (B, T).

        Batches are counted through over steps, accumulation and ranks, so no two of them are the same.
        """
        config, ranks = self.config, self.ranks
        index = (step * config.gradient_accumulation_steps + number) * ranks.world_size + ranks.rank
        return batch(self.tokens.train, "train", index, config.seed, config.batch_size, self.block_size, self.device)

    def warnings(self) -> list[str]:
        """What the user should know before it begins."""
        said = [*self.cautions, *([self.tokens.warning] if self.tokens.warning else [])]
        if self.block_size < self.config.block_size:
            said.append(
                f"block_size {self.config.block_size} is more than the model's {self.block_size} positions; "
                f"training with {self.block_size}"
            )
        return said


def build_model(
    config: TrainingConfig, vocab_size: int | None = None, base: Path | None = None, *, mapped: bool = False
) -> LanguageModel:
    """The model that `config` describes, on the CPU.

    Args:
        vocab_size: For a model from scratch, the tokenizer's.
        base: For GPT-2, the folder of the weights to start from; without it, `config.base_model` is looked up.
        mapped: For GPT-2, leave the weights in their file's pages, see `GPT2Wrapper`.

    Raises:
        ModelUnavailable: the base cannot be had.
    """
    if config.model_type == "gpt2":
        from core.models.base import find_base
        from core.models.gpt2 import GPT2Wrapper

        folder = base or find_base(config.base_model)
        lora = (config.use_lora, config.lora_rank, config.lora_alpha, config.lora_dropout)
        return GPT2Wrapper(folder, *lora, dropout=config.dropout, base_name=config.base_model, mapped=mapped)
    assert vocab_size is not None, "a model from scratch needs its tokenizer's vocabulary"
    shape = (vocab_size, config.block_size, config.n_embd, config.n_head, config.n_layer, config.dropout)
    if not config.use_lora:
        return BigramLanguageModel(*shape)
    return BigramLanguageModelLoRA(
        *shape, lora_rank=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=config.lora_dropout
    )


def build_optimizer(config: TrainingConfig, model: LanguageModel) -> torch.optim.Optimizer:
    """AdamW over the parameters that train: with LoRA the adapters' (and whatever else was left free), else all."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # beta2 of 0.99: runs here are hundreds of steps, and a memory of a thousand would never warm up.
    return PlainAdamW(trainable, lr=config.learning_rate, betas=(0.9, 0.99))
