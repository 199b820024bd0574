"""A real small model learns the bundled source by LoRA: its answers to questions kept back, before and after.

`python benchmarks/held_out_questions.py [MODEL]`, where MODEL is the folder that `make models` made, by default
`models/smollm2`; without one there is nothing to measure. An answer counts if it is the source's own, to the letter. Of
the facts behind the questions, many come in no other question, so what can be learnt for certain is how an answer is
put.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from _row import PROJECT, print_row

sys.path.insert(0, str(PROJECT))

NUM_QUESTIONS = 50
STEPS = 60
MOST_TOKENS = 48


def main() -> None:
    """Train, ask, print."""
    from core.assembly import assemble
    from core.config import TrainingConfig, parse
    from core.events import Eval
    from core.sources.corpus import Corpus
    from core.sources.files import source_file

    base = Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "models" / "smollm2"
    if not base.is_dir():
        print(f"There is no model {base}: make models adds one.", file=sys.stderr)
        return
    text = (PROJECT / "sources" / "training_data_final_merged.md").read_text()
    pairs = [entry.split("\nANSWER: ") for entry in text.removesuffix("\n").split("\n\n")]
    random.Random(1).shuffle(pairs)
    held_out, learnt = pairs[:NUM_QUESTIONS], pairs[NUM_QUESTIONS:]
    measured: list[Eval] = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "questions.jsonl"
        rows = ({"prompt": f"{question}\nANSWER:", "completion": f" {answer}"} for question, answer in learnt)
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings = {
            "model_type": "causal_lm",
            "base_model": str(base),
            "use_lora": True,
            "lora_rank": 16,
            "learning_rate": 1e-3,
            "lr_schedule": "linear",
            "warmup_steps": 10,
            "training_steps": STEPS,
            "batch_size": 16,
            "block_size": 128,
            "packing": False,
            "eval_interval": STEPS,
            "eval_iters": 10,
            "max_new_tokens": 0,
        }
        config = parse(TrainingConfig, settings)
        emit = lambda event: measured.append(event) if isinstance(event, Eval) else None  # noqa: E731  # one line
        trainer = assemble(config, Corpus.of_one(source_file(source)), emit, lambda: False)
        before = num_right(trainer, held_out)
        trainer.train()
        after = num_right(trainer, held_out)
    print_row(
        "held_out_questions",
        questions=NUM_QUESTIONS,
        right_before=before,
        right_after=after,
        val_loss_before=round(measured[0].val_loss, 3),
        val_loss_after=round(measured[-1].val_loss, 3),
        updates=STEPS,
        rows_learnt=STEPS * settings["batch_size"],
    )


def num_right(trainer: Any, pairs: list[list[str]]) -> int:
    """How many questions are answered as the source does."""
    from core.generation import Completion, Sampling

    parts = trainer.parts
    sampling = Sampling(max_new_tokens=MOST_TOKENS, temperature=0.0, stop=("\n",))
    right = 0
    for question, answer in pairs:
        said = "".join(Completion(parts.model, parts.tokenizer, f"{question}\nANSWER:", sampling))
        said = said.removesuffix("<|im_end|>").strip()
        right += said == answer.strip()
        print(f"{question!r}: {said!r}, and the source {answer!r}", file=sys.stderr)
    return right


if __name__ == "__main__":
    main()
