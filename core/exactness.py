"""What a run's numbers depend on beside its settings, kept in each checkpoint."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch


def versions() -> dict[str, str]:
    """Of Python, and of each package that computes."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("ratchet", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
