"""What a run would do, found out before it does it: from the beginning of its sources and a model without weights.

Nothing is trained, nothing is kept. What goes into the first batch is in `core.forecasts.previews`.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from core.config import TrainingConfig, tokens_per_step
from core.devices import select_device
from core.forecasts.estimates import Memory, memory_of
from core.forecasts.forecast_warnings import Known
from core.forecasts.outline import Outline, outline
from core.losses import UNLEARNT
from core.models import LanguageModel
from core.models.base import find_base
from core.models.four_bit import num_weights
from core.objectives import NextToken, Objective, Preference
from core.optimization.updates import freeze
from core.sources.beginnings import Beginning, corpus_of
from core.sources.methods import method_of
from core.sources.rows import place_in
from core.tokens.batches import Batch, Batches, Examples, Pairs, Windows
from core.tokens.encoding import Encoder, first_kind, own_tokenizer
from core.tokens.preparation import left_out, prepare
from core.tokens.token_files import TokenFile
from core.tokens.tokenizer import Tokenizer

NUM_LOOKED_AT = 8
"""Batches whose padding is measured."""

MOST_PLACES = 4 << 20
"""Tokens in batches that are made to be looked at: a run may be asked for with any size of them."""


@dataclass
class _Remembering(Encoder):
    """An encoder that is asked afterwards what it has made."""

    def __post_init__(self) -> None:
        self.files: list[TokenFile] = []

    def tokens(self, part: Any) -> TokenFile:
        """The tokens of a source."""
        file = Encoder.tokens(self, part)
        self.files.append(file)
        return file


class Prospect:
    """A run that is not begun: its tokenizer, its batches, and its model without weights.

    Args:
        config: Of the run.
        sources: Their beginnings.
        models_root: Where bases are looked for.

    Raises:
        RatchetError: what the run itself would end with at once.
    """

    def __init__(self, config: TrainingConfig, sources: Sequence[Beginning], models_root: Path | None) -> None:
        self.config = config
        self.sources = sources
        self._models_root = models_root
        corpus = corpus_of(sources)
        self.method = method_of({part.source.name: first_kind(part) for part in sources}, config)
        self.model, self.tokenizer = self._model()
        freeze(self.model, config.freeze_layers)
        self.block_size = min(config.block_size, self.model.max_context)
        encoder = _Remembering(self.tokenizer, self.method == "lm")
        may_pack = self.method != "sft" or not config.packing or self.model.supports_segments
        self.data: Batches = prepare(corpus, self.method, config, encoder, self.block_size, may_pack=may_pack)
        self.files = encoder.files

    @property
    def is_estimate(self) -> bool:
        """Whether a source is larger than what was read of it."""
        return any(part.scale > 1 for part in self.sources)

    @cached_property
    def num_train_tokens(self) -> int:
        """Of all sources, scaled up."""
        return round(self.data.num_tokens["train"] * self._scale)

    @cached_property
    def num_val_tokens(self) -> int:
        """Likewise."""
        return round(self.data.num_tokens["val"] * self._scale)

    @cached_property
    def num_examples(self) -> int | None:
        """Likewise; None where all text is learnt, and no example counted."""
        if self.method == "lm":
            return None
        counts = zip(self.files, self.sources, strict=True)
        return round(sum(file.num_examples * part.scale for file, part in counts) / self._num_each)

    @cached_property
    def num_val_examples(self) -> int | None:
        """Those of them that are kept back."""
        if not isinstance(self.data, Examples):
            return None
        return sum(
            max(1, int(len(packing["val"].order) * part.scale))
            for packing, part in zip(self.data.packings, self.sources, strict=True)
        )

    @cached_property
    def steps_per_epoch(self) -> float:
        """Updates in which the data comes once."""
        batches = self.config.gradient_accumulation_steps * self.config.num_processes
        return self.data.per_epoch() * self._scale / batches

    @cached_property
    def training_steps(self) -> int:
        """Updates that would be made, unless patience runs out before."""
        if self.config.num_epochs is None:
            return self.config.training_steps
        return min(self.config.training_steps, math.ceil(self.config.num_epochs * self.steps_per_epoch))

    @cached_property
    def longest_row(self) -> int:
        """Tokens in the longest row of any batch."""
        if isinstance(self.data, Windows):
            return self.block_size
        assert isinstance(self.data, Examples)
        longest = [self._longest(file, packing) for file, packing in zip(self.files, self.data.packings, strict=True)]
        return min(self.block_size, max(longest))

    @cached_property
    def memory(self) -> Memory:
        """What a step needs; the model is of no use for anything else afterwards."""
        config = self.config
        reference = None
        objective: Objective = NextToken()
        if self.method == "dpo":
            if not config.use_lora:
                reference = self._base(config)
                reference.eval().requires_grad_(False)
            objective = Preference(config.dpo_beta, reference)
        is_packed = isinstance(self.data, Examples) and self.data.is_packed
        width = config.batch_size * self._num_each
        ids_BT = torch.empty((width, self.longest_row), dtype=torch.int64, device="meta")
        batch = Batch(ids_BT, ids_BT, ids_BT if is_packed else None, width * self.longest_row)
        return memory_of(config, self.model, objective, batch, reference)

    @property
    def device(self) -> str:
        """Where it would train."""
        return select_device(self.config.device)

    def padding(self) -> float:
        """The part of the first batches that is there only to fill their rows."""
        if not isinstance(self.data, Examples):
            return 0.0
        found = [is_padding(self.data.training(index)) for index in range(min(NUM_LOOKED_AT, self.num_viewable))]
        num_places = sum(is_padding_BT.numel() for is_padding_BT in found)
        return sum(int(is_padding_BT.sum()) for is_padding_BT in found) / num_places if num_places else 0.0

    @property
    def num_viewable(self) -> int:
        """Batches that can be made without a thought of memory; 0 if not even one."""
        return MOST_PLACES // (self.config.batch_size * self._num_each * self.longest_row)

    @property
    def _num_each(self) -> int:
        return 2 if isinstance(self.data, Pairs) else 1

    @cached_property
    def _scale(self) -> float:
        """By how many times all sources together have more tokens than what was read of them."""
        whole = sum(len(file.stored) * part.scale for file, part in zip(self.files, self.sources, strict=True))
        read = sum(len(file.stored) for file in self.files)
        return whole / read if read else 1.0

    def _longest(self, file: TokenFile, packing: Any) -> int:
        lengths = np.minimum(np.diff(file.starts) - 1, self.block_size)
        if self._num_each == 2:
            lengths = lengths.reshape(-1, 2).max(1)
        rows = packing["train"]
        return int(np.add.reduceat(lengths[rows.order], rows.starts[:-1]).max())

    def _model(self) -> tuple[LanguageModel, Tokenizer]:
        config = self.config
        if config.is_pretrained:
            model = self._base(config)
            return model, model.tokenizer
        tokenizer = own_tokenizer(config, corpus_of(self.sources))
        return outline(config, tokenizer.vocab_size), tokenizer

    def _base(self, config: TrainingConfig) -> Outline:
        return Outline(find_base(config.base_model, self._models_root), config)


def preflight(prospect: Prospect) -> dict[str, Any]:
    """All that can be told without training, as plain values; `known` is for `core.forecasts.forecast_warnings`."""
    config, device = prospect.config, prospect.device
    num_parameters, num_trainable = num_weights(prospect.model)
    # What it is made of is asked before the model is played through.
    memory, at_hand = prospect.memory, memory_at_hand(device)
    num_epochs = prospect.training_steps / prospect.steps_per_epoch
    known = Known(
        num_val_tokens=prospect.num_val_tokens,
        num_val_examples=prospect.num_val_examples,
        longest_example=None if prospect.method == "lm" else prospect.longest_row,
        padding=prospect.padding(),
        training_steps=prospect.training_steps,
        num_epochs=num_epochs,
        max_context=prospect.model.max_context,
        vocab_size=prospect.tokenizer.vocab_size,
        is_estimate=prospect.is_estimate,
        memory_bytes=memory.total,
        activation_bytes=memory.activations,
        checkpoint_bytes=memory.checkpoint,
        memory_at_hand_bytes=at_hand,
        device=device,
    )
    return {
        "method": prospect.method,
        "num_train_tokens": prospect.num_train_tokens,
        "num_val_tokens": prospect.num_val_tokens,
        "num_examples": prospect.num_examples,
        "tokens_per_step": tokens_per_step({**config.model_dump(), "block_size": prospect.block_size}),
        "steps_per_epoch": round(prospect.steps_per_epoch, 2),
        "training_steps": prospect.training_steps,
        "num_epochs": round(num_epochs, 2),
        "num_parameters": num_parameters,
        "num_trainable": num_trainable,
        "memory_bytes": {**asdict(memory), "total": memory.total},
        "memory_at_hand_bytes": at_hand,
        "device": device,
        "is_estimate": prospect.is_estimate,
        "skipped_rows": [_skipped(part, file) for part, file in zip(prospect.sources, prospect.files, strict=True)],
        "said": _said(prospect),
        "known": asdict(known),
    }


def is_padding(batch: Batch) -> Tensor:
    """Which places of a batch only fill their rows, shape (B, T)."""
    is_idle_BT = batch.targets_BT == UNLEARNT
    if batch.segments_BT is not None:
        # What is left of a row is its last segment, and in no other is nothing learnt.
        is_last_BT = batch.segments_BT == batch.segments_BT[:, -1:]
        return is_last_BT & (is_idle_BT | ~is_last_BT).all(1, keepdim=True)
    return ((batch.ids_BT == 0) & is_idle_BT).flip(1).cumprod(1).flip(1).bool()


def memory_at_hand(device: str) -> int:
    """Bytes that a run could have now."""
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info(device)
        return int(free)
    return int(psutil.virtual_memory().available)


def _skipped(part: Beginning, file: TokenFile) -> dict[str, Any]:
    first = [{"number": number, "reason": reason} for number, reason in file.told["bad_rows"]]
    place = place_in(part.format)
    return {"source": part.source.name, "num": file.told["num_bad_rows"], "place": place, "first": first}


def _said(prospect: Prospect) -> list[str]:
    """What the data warns of, but for the rows that are told one by one."""
    files = zip(prospect.sources, prospect.files, strict=True)
    told = {said for part, file in files for said in left_out(part, file.told)}
    return [said for said in prospect.data.warnings if said not in told]
