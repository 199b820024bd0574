"""What every benchmark prints: one line of JSON with its figures and the machine they were measured on."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parent.parent


def print_row(name: str, **figures: Any) -> None:
    """One row; figures carry their units in their names."""
    machine = {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    print(json.dumps({"benchmark": name, **figures, "machine": machine}))


def spread(seconds: list[float]) -> dict[str, float]:
    """Minimum, median, 95th percentile and maximum, rounded to milliseconds."""
    ordered = sorted(seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    found = {"min": ordered[0], "p50": statistics.median(ordered), "p95": p95, "max": ordered[-1]}
    return {name: round(value, 3) for name, value in found.items()}


@contextmanager
def started(module: str, *arguments: str, **env: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command of ours that prints its address when it is ready; the process and that address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=PROJECT,
        env={**kept, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    try:
        yield process, process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(timeout=40)
        process.stdout.close()


def _cpu() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) if sys.platform == "linux" else None
    return found.group(1) if found else platform.processor()
