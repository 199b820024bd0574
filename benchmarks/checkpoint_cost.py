"""What a checkpoint costs the loop: full GPT-2 124M with random weights, batch 8 × 128, AdamW, by our own trainer.

Rounds alternate: so many steps without a save, as many with one at their beginning, which is published before they end.
What the second kind takes longer, over the time of 100 steps, is the share of one checkpoint every 100 steps.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from _row import PROJECT, print_row, spread

sys.path.insert(0, str(PROJECT))

ROUNDS = 4
STEPS = 12
EVERY = 100


def main() -> None:
    """Measure and print."""
    from _gpt2 import make_gpt2_124m

    from core.assembly import assemble
    from core.checkpointing import CheckpointStore
    from core.config import TrainingConfig, parse
    from core.sources import read_source

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        text = PROJECT / "sources" / "training_data_final_merged.md"
        config = parse(
            TrainingConfig,
            {
                "model_type": "gpt2",
                "base_model": str(make_gpt2_124m(root / "gpt2", text.read_text())),
                "batch_size": 8,
                "block_size": 128,
                "training_steps": 1_000_000,
                "precision": sys.argv[1] if len(sys.argv) > 1 else "fp32",
            },
        )
        store = CheckpointStore(root / "checkpoints")
        trainer = assemble(config, read_source(text), lambda _: None, lambda: False, store=store)
        trainer.parts.model.train()
        trainer.update()

        def seconds(save: bool) -> float:
            began = time.perf_counter()
            if save:
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

        stalls: list[float] = []
        plain, saving = [], []
        for _ in range(ROUNDS):
            plain.append(seconds(save=False))
            saving.append(seconds(save=True))
        size = next(iter(store)).manifest.size_bytes
        shutil.rmtree(store.root)
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
        precision=config.precision,
    )


if __name__ == "__main__":
    main()
