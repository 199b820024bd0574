"""What a checkpoint costs the loop: full GPT-2 124M with random weights, batch 8 × 128, AdamW, by our own trainer.

Rounds alternate: so many steps without a save, as many with one at their beginning, which is published before they end.
What the second kind takes longer, over the time of 100 steps, is the share of one checkpoint every 100 steps.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _row import PROJECT, print_row, spread

sys.path.insert(0, str(PROJECT))

ROUNDS = 4
STEPS = 12
EVERY = 100


def make_trainer(root: Path) -> Any:
    """A run of the full-size model that keeps its checkpoints below `root`."""
    from _gpt2 import make_gpt2_124m

    from core.assembly import assemble
    from core.checkpointing import CheckpointStore
    from core.config import TrainingConfig, parse
    from core.sources.files import read_source

    text = PROJECT / "sources" / "training_data_final_merged.md"
    settings = {
        "model_type": "gpt2",
        "base_model": str(make_gpt2_124m(root / "gpt2", text.read_text())),
        "batch_size": 8,
        "block_size": 128,
        "training_steps": 1_000_000,
        "precision": sys.argv[1] if len(sys.argv) > 1 else "fp32",
    }
    store = CheckpointStore(root / "checkpoints")
    trainer = assemble(parse(TrainingConfig, settings), read_source(text), lambda _: None, lambda: False, store=store)
    trainer.parts.model.train()
    trainer.update()
    return trainer


def seconds_of_round(trainer: Any, stalls: list[float] | None) -> float:
    """So many steps; with `stalls`, a save at their beginning, whose stall is added there."""
    began = time.perf_counter()
    if stalls is not None:
        trainer.keep()
        stalls.append(time.perf_counter() - began)
    for _ in range(STEPS):
        trainer.update()
        trainer.report_saved()
    took = time.perf_counter() - began
    waited = time.perf_counter()
    trainer.report_saved(wait=True)
    assert time.perf_counter() - waited < 0.1, "the save outlasted the steps: make more of them"
    return took


def main() -> None:
    """Measure and print."""
    stalls: list[float] = []
    plain, saving = [], []
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder))
        for _ in range(ROUNDS):
            plain.append(seconds_of_round(trainer, None))
            saving.append(seconds_of_round(trainer, stalls))
        size = sum(path.stat().st_size for path in next(Path(folder).glob("checkpoints/checkpoint_*")).iterdir())
    step = statistics.median(plain) / STEPS
    extra = statistics.median(saving) - statistics.median(plain)
    print_row(
        "checkpoint_cost",
        share_of_loop_percent=round(100 * extra / (EVERY * step), 2),
        extra_seconds=round(extra, 3),
        stall_seconds=spread(stalls),
        step_seconds=round(step, 3),
        rounds_plain=spread(plain),
        rounds_saving=spread(saving),
        size_mib=size >> 20,
        precision=trainer.parts.config.precision,
    )


if __name__ == "__main__":
    main()
