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
    from core.events import Eval, Event
    from core.sources.corpus import Corpus
    from core.sources.files import source_file

    base = Path(sys.argv[1]) if len(sys.argv) > 1 else PROJECT / "models" / "smollm2"
    if not base.is_dir():
        print(f"There is no model {base}: make models adds one.", file=sys.stderr)
        return
    held_out, learnt = questions()
    measured: list[Eval] = []

    def emit(event: Event) -> None:
        if isinstance(event, Eval):
            measured.append(event)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "questions.jsonl"
        source.write_text("".join(json.dumps(row) + "\n" for row in learnt))
        config = parse(TrainingConfig, settings(base))
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
        rows_learnt=STEPS * config.batch_size,
    )


def questions() -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """The bundled source's questions and answers as rows: those kept back, and those to learn."""
    text = (PROJECT / "sources" / "training_data_final_merged.md").read_text()
    pairs = [entry.split("\nANSWER: ") for entry in text.removesuffix("\n").split("\n\n")]
    random.Random(1).shuffle(pairs)
    rows = [{"prompt": f"{question}\nANSWER:", "completion": f" {answer}"} for question, answer in pairs]
    return rows[:NUM_QUESTIONS], rows[NUM_QUESTIONS:]


def settings(base: Path) -> dict[str, Any]:
    """The training configuration."""
    return {
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


def num_right(trainer: Any, rows: list[dict[str, str]]) -> int:
    """How many questions are answered as the source does."""
    from core.generation import Completion, Sampling

    parts = trainer.parts
    sampling = Sampling(max_new_tokens=MOST_TOKENS, temperature=0.0, stop=("\n",))
    right = 0
    for row in rows:
        said = "".join(Completion(parts.model, parts.tokenizer, row["prompt"], sampling))
        said, answer = said.removesuffix("<|im_end|>").strip(), row["completion"].strip()
        right += said == answer
        print(f"{row['prompt']!r}: {said!r}, and the source {answer!r}", file=sys.stderr)
    return right


if __name__ == "__main__":
    main()
