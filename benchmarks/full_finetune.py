"""Full fine-tuning of GPT-2 124M (its real shape, random weights): batch 8 × 128, AdamW, clipping at 1.0.

Ours under bf16 against a plain fp32 loop over transformers' model (which stands in for nanoGPT: at this shape they are
as fast as each other), the same loop under bf16 autocast with fused AdamW, and transformers' Trainer under bf16.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _alternate import alternate, ceilings
from _contestants import TEXT, HuggingFaceTrainer, Ours, PlainLoop
from _gpt2 import make_gpt2_124m
from _row import print_row

ROUNDS = 5
UPDATES = 3
SHAPE = {"batch_size": 8, "block_size": 128}
RATE = 3e-4


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        base = make_gpt2_124m(Path(folder) / "gpt2", TEXT.read_text())
        settings = {"model_type": "gpt2", "base_model": str(base), "learning_rate": RATE, "precision": "bf16", **SHAPE}
        makers = {
            "ours": partial(Ours, settings=settings),
            "plain_fp32": partial(peer, PlainLoop, base, bf16=False),
            "plain_bf16": partial(peer, PlainLoop, base, bf16=True),
            "trainer_bf16": partial(peer, HuggingFaceTrainer, base, bf16=True),
        }
        tokens = SHAPE["batch_size"] * SHAPE["block_size"]
        found = alternate(makers, rounds=ROUNDS, updates=UPDATES, tokens=tokens)
    print_row("full_finetune", **found, ceilings=ceilings())


def peer(kind: Any, base: Path, *, bf16: bool) -> Any:
    """One that is not ours, with a model and ids of its own."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor(AutoTokenizer.from_pretrained(base)(TEXT.read_text(), verbose=False)["input_ids"])
    return kind(AutoModelForCausalLM.from_pretrained(base), ids, rate=RATE, bf16=bf16, **SHAPE)


if __name__ == "__main__":
    main()
