"""What a run is made of, and how its two largest parts are built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from core.config import TrainingConfig, tokens_per_step
from core.distributed import ALONE, Ranks
from core.models import LanguageModel
from core.models.bigram import BigramLanguageModel, BigramLanguageModelLoRA
from core.models.modern import ModernLanguageModel, ModernLanguageModelLoRA
from core.objectives import Objective
from core.optimization.averaging import Averages
from core.optimization.precision import Precision
from core.optimization.updates import build_optimizer as build_optimizer
from core.tokens.batches import Batch, Batches
from core.tokens.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of."""

    config: TrainingConfig
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    tokenizer: Tokenizer
    data: Batches
    objective: Objective
    device: str
    block_size: int
    method: str
    precision: Precision
    ranks: Ranks = ALONE
    hashes: Mapping[str, str] = field(default_factory=dict)
    """Of the tokenizer and, where only adapters are kept, of what they belong to."""
    averages: Averages | None = None
    """Of the weights, if the run is to be looked at through them."""
    cautions: tuple[str, ...] = ()
    """What else the user should know."""

    @property
    def tokens_per_step(self) -> int:
        """In one update, of all ranks together."""
        return tokens_per_step({**self.config.model_dump(), "block_size": self.block_size})

    @property
    def steps_per_epoch(self) -> float:
        """Updates in which the data comes once."""
        return self.data.per_epoch() / self._batches_per_step

    @property
    def _batches_per_step(self) -> int:
        return self.config.gradient_accumulation_steps * self.ranks.world_size

    def training_batch(self, step: int, number: int) -> Batch:
        """This rank's batch `number` of a step.

        Batches are counted through over steps, accumulation and ranks, so no two of them are the same.
        """
        index = self._index(step, number, self.ranks.rank)
        return self.data.training(index).to(self.device)

    def share(self, learnt: int, batch: Batch) -> float:
        """What a batch counts in the mean of its step's, so that all tokens that are learnt count the same.

        Args:
            learnt: See `num_learnt`.
        """
        if self.method != "sft":
            return 1 / self.config.gradient_accumulation_steps
        # The ranks' gradients are averaged, not added.
        return batch.num_targets / learnt * self.ranks.world_size

    def num_learnt(self, step: int) -> int:
        """Tokens that are learnt in a step, of all batches of all ranks: each rank can count the others'."""
        if self.method != "sft":
            return 0
        config = self.config
        places = [(n, rank) for n in range(config.gradient_accumulation_steps) for rank in range(self.ranks.world_size)]
        return sum(self.data.num_targets(self._index(step, number, rank)) for number, rank in places)

    def batches_of(self, step: int) -> str:
        """Which batches of the run a step is made of, for people."""
        first, count = self._index(step, 0, 0), self._batches_per_step
        return f"batch {first:,}" if count == 1 else f"batches {first:,} to {first + count - 1:,}"

    def _index(self, step: int, number: int, rank: int) -> int:
        config, ranks = self.config, self.ranks
        place = (step + config.skip_batches) * config.gradient_accumulation_steps + number
        return place * ranks.world_size + rank

    def warnings(self) -> list[str]:
        """What the user should know before it begins."""
        said = [*self.cautions, *self.data.warnings]
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
        base: For pretrained models, the folder to start from; without it, `config.base_model` is looked up.
        mapped: For pretrained models, leave the weights in their file's pages, see `CausalLM`.

    Raises:
        ModelUnavailable: the base cannot be had.
        ConfigError: `lora_targets` names a layer that is not there, or a package is missing.
    """
    lora: Any = {
        "lora_rank": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "lora_targets": config.lora_targets,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
    }
    if config.is_pretrained:
        from core.models.base import find_base
        from core.models.causal_lm import CausalLM
        from core.models.gpt2 import GPT2Wrapper

        folder = base or find_base(config.base_model)
        given: Any = {"dropout": config.dropout, "base_name": config.base_model, "mapped": mapped}
        given["quantization"] = config.quantization
        pretrained = GPT2Wrapper if config.model_type == "gpt2" else CausalLM
        return pretrained(folder, config.use_lora, **given, **lora)
    assert vocab_size is not None, "a model from scratch needs its tokenizer's vocabulary"
    shape = (vocab_size, config.block_size, config.n_embd, config.n_head, config.n_layer, config.dropout)
    if config.architecture == "classic":
        return BigramLanguageModelLoRA(*shape, **lora) if config.use_lora else BigramLanguageModel(*shape)
    kind: Any = ModernLanguageModelLoRA if config.use_lora else ModernLanguageModel
    own = {name: getattr(config, name) for name in ("activation", "qk_norm", "tie_embeddings")}
    modern: LanguageModel = kind(*shape, **own, **(lora if config.use_lora else {}))
    return modern
