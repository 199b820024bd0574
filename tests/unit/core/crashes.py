"""Processes that die between two calls of a save: `python -m tests.unit.core.crashes ROOT SEED NUM`, which forks them.

Each saves two checkpoints of one run and retires the first; it ends itself with SIGKILL before its n-th call of
anything written in C, which is what every system call of the store goes through. Writes one line of JSON for each
process: at which call it died, and which checkpoints it had been told were published and retired.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import save_file

from core.checkpointing import CheckpointStore
from core.checkpoints.manifest import new_manifest

RUN = "run_crashing"


def save_twice(root: Path, say: Callable[[str, str], object]) -> None:
    """What may be killed."""
    store = CheckpointStore(root)
    names = []
    for step in (10, 20):
        manifest = new_manifest(model="tiny", source="sums.md", step=step, end_step=20, config={}, run=RUN)
        saved = store.publish(manifest, _write, size_bytes=1000)
        names.append(saved.manifest.name)
        say("published", saved.manifest.name)
    store.retire(names[0])
    say("retired", names[0])


def _write(folder: Path) -> None:
    save_file({"weight": torch.zeros(3, 3)}, folder / "model.safetensors")
    (folder / "state.json").write_text("{}")


def _killing_at(turn: int) -> Callable[[FrameType, str, Any], None]:
    calls = 0

    def watch(_frame: FrameType, event: str, _what: Any) -> None:
        nonlocal calls
        if event == "c_call":
            calls += 1
            if calls == turn:
                os.kill(os.getpid(), signal.SIGKILL)

    return watch


def _num_calls(root: Path) -> int:
    calls = 0

    def count(_frame: FrameType, event: str, _what: Any) -> None:
        nonlocal calls
        calls += event == "c_call"

    sys.setprofile(count)
    save_twice(root, lambda *_: None)
    sys.setprofile(None)
    return calls


def _crash(folder: Path, turn: int, told: int) -> None:
    sys.setprofile(_killing_at(turn))
    save_twice(folder, lambda what, name: os.write(told, f"{what} {name}\n".encode()))
    os._exit(0)


def main(root: Path, seed: int, num_crashes: int) -> None:
    """Crash so many times, each in a folder of its own below the root."""
    # The first time, imports are among the calls.
    save_twice(root / "warm", lambda *_: None)
    turns = random.Random(seed).sample(range(1, _num_calls(root / "whole")), num_crashes)
    for number, turn in enumerate(turns):
        folder = root / str(number)
        telling, told = os.pipe()
        process = os.fork()
        if process == 0:
            _crash(folder, turn, told)
        os.close(told)
        with os.fdopen(telling) as pipe:
            said = [line.split() for line in pipe.read().splitlines()]
        _, status = os.waitpid(process, 0)
        sys.stdout.write(json.dumps({"folder": str(folder), "turn": turn, "said": said, "status": status}) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
