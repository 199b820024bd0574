"""Ours and the peers behind one face, see `_alternate.Contestant`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _row import PROJECT

sys.path.insert(0, str(PROJECT))

TEXT = PROJECT / "sources" / "training_data_final_merged.md"


class Ours:
    """A run as the worker's child makes it, from its configuration; nothing is kept."""

    def __init__(self, settings: Mapping[str, Any], source: Path = TEXT) -> None:
        from core.assembly import assemble
        from core.config import TrainingConfig, parse
        from core.machine.allocation import keep_freed_memory
        from core.sources.files import read_source

        keep_freed_memory()
        config = parse(TrainingConfig, {"training_steps": 1_000_000, "use_lr_warmup": False, **settings})
        self.trainer = assemble(config, read_source(source), lambda _: None, lambda: False)
        self.trainer.parts.model.train()
        self._loss = 0.0

    def updates(self, count: int) -> float:
        """By the loop's own method."""
        began = time.perf_counter()
        for _ in range(count):
            self._loss = self.trainer.update()
        return time.perf_counter() - began

    def loss(self) -> float:
        """As the loop tells it."""
        return self._loss


class PlainLoop:
    """The loop that everybody writes first: fp32 (or bf16 autocast), torch's AdamW, clipping at 1.0.

    Args:
        model: A causal language model of transformers, or any module that returns an object with `loss`.
        ids: Token ids of the source, shape (T,).
        by: The optimizer, where it is another one.
    """

    def __init__(
        self, model: Any, ids: Any, *, batch_size: int, block_size: int, rate: float, bf16: bool, by: Any = None
    ) -> None:
        import torch

        self._model, self._ids = model.train(), ids
        self._shape = (batch_size, block_size)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = by or torch.optim.AdamW(trained, lr=rate, fused=bf16)
        self._generator = torch.Generator().manual_seed(1)
        self._bf16 = bf16
        self._loss = 0.0

    def updates(self, count: int) -> float:
        """Forward, backward, clip, step."""
        import torch

        began = time.perf_counter()
        for _ in range(count):
            batch_size, block_size = self._shape
            starts = torch.randint(len(self._ids) - block_size, (batch_size,), generator=self._generator)
            batch = torch.stack([self._ids[start : start + block_size] for start in starts.tolist()])
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bf16):
                loss = self._model(input_ids=batch, labels=batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._loss = loss.item()
        return time.perf_counter() - began

    def loss(self) -> float:
        """Of the last batch."""
        return self._loss


class HuggingFaceTrainer:
    """transformers' Trainer as its documents show it; only the time from update to update is counted.

    Args:
        model: What it trains.
        ids: Token ids of the source, shape (T,).
    """

    def __init__(self, model: Any, ids: Any, *, batch_size: int, block_size: int, rate: float, bf16: bool) -> None:
        self._model, self._settings = model, {"learning_rate": rate, "bf16": bf16}
        self._batch_size = batch_size
        rows = len(ids) // block_size
        self._rows = [{"input_ids": row, "labels": row} for row in ids[: rows * block_size].view(rows, block_size)]
        self._loss = 0.0

    def updates(self, count: int) -> float:
        """One call of `train`, which makes one update more: the first is not counted."""
        from transformers import Trainer, TrainerCallback, TrainingArguments

        ends: list[float] = []

        class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types here
            def on_step_end(self, *_: Any, **__: Any) -> None:
                ends.append(time.perf_counter())

        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder,
                per_device_train_batch_size=self._batch_size,
                max_steps=count + 1,
                lr_scheduler_type="constant",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                logging_steps=count + 1,
                logging_strategy="steps",
                log_level="error",
                use_cpu=True,
                **self._settings,
            )
            trainer = Trainer(self._model, arguments, train_dataset=self._rows, callbacks=[Clock()])
            trainer.remove_callback(_printer())
            self._loss = trainer.train().training_loss
        return ends[-1] - ends[0]

    def loss(self) -> float:
        """Mean of the last round's updates."""
        return self._loss


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback
