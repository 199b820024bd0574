"""From a checkpoint's path to its first token: a full GPT-2 of 124M parameters with its optimizer, 1.5 GB on the disk.

Each round is a fresh process with its files in the page cache. What it imports is told apart: a worker's generation has
imported it long before the first request. The weights are random, made on the spot; only their sizes are GPT-2's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from _gpt2 import make_gpt2_124m
from _row import PROJECT, print_row, spread

ROUNDS = 7

CHILD = """
import json, os, re, sys, time
from pathlib import Path
began = time.perf_counter()
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel
from core.checkpoints.opening import open_for_generation
torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))  # As a worker's generation does.
imported = time.perf_counter()
model, tokenizer = open_for_generation(Path(sys.argv[1]))
opened = time.perf_counter()
with torch.inference_mode():
    model.predict(torch.tensor([tokenizer.encode("QUESTION: What is the capital of France?")]))[0].argmax().item()
said = time.perf_counter()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps([imported - began, opened - imported, said - opened, said - imported, peak]))
"""


def make_checkpoint(folder: Path) -> Path:
    """A checkpoint as a run leaves it after one update."""
    import torch

    from core.checkpointing import CheckpointStore, save_checkpoint
    from core.checkpoints.manifest import new_manifest
    from core.config import TrainingConfig, config_to_dict
    from core.models.gpt2 import GPT2Wrapper
    from core.parts import build_optimizer
    from core.state import RunState, capture

    text = (PROJECT / "sources" / "training_data_final_merged.md").read_text()
    base = make_gpt2_124m(folder / "base", text[:50_000])
    config = TrainingConfig(source="random.md", model_type="gpt2")
    model = GPT2Wrapper(base)
    optimizer = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    captured = capture(model, optimizer, model.tokenizer, RunState(step=1, end_step=1))
    said = {"source": config.source, "step": 1, "end_step": 1, "config": config_to_dict(config)}
    manifest = new_manifest(model=model.name, **said)
    return save_checkpoint(CheckpointStore(folder), manifest, partial(captured.write)).path


def main() -> None:
    """Measure and print."""
    sys.path.insert(0, str(PROJECT))
    with tempfile.TemporaryDirectory() as folder:
        path = make_checkpoint(Path(folder))
        size = sum(item.stat().st_size for item in path.iterdir())
        command = [sys.executable, "-W", "ignore", "-c", CHILD, str(path)]
        subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)  # The page cache is warm from here on.
        rows = [
            json.loads(subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout)
            for _ in range(ROUNDS)
        ]
    imports, opening, first_token, whole, peak = zip(*rows, strict=True)
    print_row(
        "checkpoint_open",
        import_seconds=spread(list(imports)),
        open_seconds=spread(list(opening)),
        first_token_seconds=spread(list(first_token)),
        open_to_first_token_seconds=spread(list(whole)),
        peak_mib=round(max(peak)),
        checkpoint_bytes=size,
        rounds=ROUNDS,
    )


if __name__ == "__main__":
    main()
