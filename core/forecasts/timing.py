"""How long an update takes, tried in a process of its own: `python -m core.forecasts.timing`, told on standard input.

A process, since a run that does not fit takes its memory with it, and sets the number of threads as training would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.config import TrainingConfig, config_to_dict, parse
from core.machine.allocation import keep_freed_memory
from core.machine.processes import POLITE, exit_with_parent
from core.sources.beginnings import beginnings, corpus_of
from core.sources.files import SourceFolder

NUM_WARMING = 1
NUM_TIMED = 3
MOST_SECONDS = 120.0

MOST_CHARACTERS = 1 << 20
"""Of each source: how long an update takes does not depend on how many there are."""


def seconds_per_step(
    config: TrainingConfig,
    sources_root: Path,
    models_root: Path,
    num_characters: dict[str, int],
    visible_devices: str | None = None,
) -> float | None:
    """Of a few updates that nobody keeps; None if they could not be made within two minutes.

    Args:
        visible_devices: `CUDA_VISIBLE_DEVICES` of the process that tries them; None leaves it as it is.
    """
    told = {
        "config": config_to_dict(config),
        "sources": str(sources_root),
        "models": str(models_root),
        "num_characters": num_characters,
        "parent": os.getpid(),
    }
    visible = {} if visible_devices is None else {"CUDA_VISIBLE_DEVICES": visible_devices}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "core.forecasts.timing"],
            input=json.dumps(told),
            capture_output=True,
            text=True,
            timeout=MOST_SECONDS,
            env={**os.environ, **POLITE, **visible},
            check=True,
        )
        return float(json.loads(done.stdout)["seconds"])
    except (subprocess.SubprocessError, ValueError, KeyError):
        return None


def timed(told: dict[str, Any]) -> float:
    """The same, in this process."""
    from core.assembly import assemble

    # One process, and nothing beside the updates.
    alone = {"num_processes": 1, "num_epochs": None, "enable_checkpoints": False}
    config = parse(TrainingConfig, {**told["config"], **alone})
    parts = beginnings(config.shares, SourceFolder(Path(told["sources"])), told["num_characters"], MOST_CHARACTERS)
    trainer = assemble(
        config, corpus_of(parts), lambda _: None, lambda: False, models_root=Path(told["models"]), end_step=1 << 30
    )
    trainer.parts.model.train()
    for _ in range(NUM_WARMING):
        trainer.update()
    begun = time.perf_counter()
    for _ in range(NUM_TIMED):
        trainer.update()
    return (time.perf_counter() - begun) / NUM_TIMED


def main() -> int:
    """Time what standard input says."""
    told = json.loads(sys.stdin.read())
    exit_with_parent(parent=told["parent"])
    keep_freed_memory()
    sys.stdout.write(json.dumps({"seconds": timed(told)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
