"""LoRA of rank 8 on all linear layers of SmolLM2-135M: batch 8 × 128.

`python benchmarks/lora.py [MODEL]`, where MODEL is the folder that `make models` made, by default `models/smollm2`;
without one there is nothing to measure. Ours under bf16 against transformers' Trainer with peft, under bf16 autocast
and with its weights in bf16.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from _alternate import Contestant, alternate, ceilings
from _contestants import TEXT, HuggingFaceTrainer, Ours
from _row import PROJECT, print_row

ROUNDS = 5
UPDATES = 3
SHAPE = {"batch_size": 8, "block_size": 128}
RANK = 8
RATE = 1e-3


def main() -> None:
    """Measure and print."""
    base = Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "models" / "smollm2"
    if not base.is_dir():
        print(f"There is no model {base}: make models adds one.", file=sys.stderr)
        return
    settings = {
        **{"model_type": "causal_lm", "base_model": str(base), "use_lora": True, "lora_rank": RANK},
        **{"learning_rate": RATE, "precision": "bf16", **SHAPE},
    }
    makers: dict[str, Callable[[], Contestant]] = {
        "ours": partial(Ours, settings=settings),
        "trainer_autocast": partial(peer, base, short_weights=False),
        "trainer_bf16_weights": partial(peer, base, short_weights=True),
    }
    tokens = SHAPE["batch_size"] * SHAPE["block_size"]
    print_row("lora", **alternate(makers, rounds=ROUNDS, updates=UPDATES, tokens=tokens), ceilings=ceilings())


def peer(base: Path, *, short_weights: bool) -> HuggingFaceTrainer:
    """Adapters by peft, on a model of transformers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = torch.tensor(AutoTokenizer.from_pretrained(base)(TEXT.read_text(), verbose=False)["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if short_weights else torch.float32)
    wanted = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type="CAUSAL_LM")
    return HuggingFaceTrainer(get_peft_model(model, wanted), ids, rate=RATE, bf16=not short_weights, **SHAPE)


if __name__ == "__main__":
    main()
