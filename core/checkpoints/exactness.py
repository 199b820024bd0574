"""What a run's numbers depend on beside its settings; kept in each checkpoint, and compared when a run goes on.

Equal to the last bit is promised for the same torch on the same type of device with as many ranks, on CUDA with
`deterministic`. Where something else differs, the run goes on and says so.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

import torch

COMPUTING = ("torch", "numpy", "tokenizers", "transformers", "peft", "bitsandbytes")
"""Packages whose release may change a bit of the result."""

ROUNDING = "2"
"""Of our own steps and of what we choose of torch's: another one rounds otherwise somewhere. Older ones do not say."""

_TOLD = {
    "device": "the device was {} and is {}",
    "world_size": "it ran in {} processes and runs in {}",
    "num_threads": "it computed with {} threads and computes with {}",
    "processor": "the processor was '{}' and is '{}'",
}


def versions() -> dict[str, str]:
    """Of Python, and of each package that computes."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    # The last one only where it computes: to have it installed changes nothing.
    optional = ["bitsandbytes"] if sys.modules.get("bitsandbytes") else []
    for name in ("ratchet", "numpy", "tokenizers", "transformers", "peft", *optional):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def surroundings(device: str, world_size: int, deterministic: bool) -> dict[str, str]:
    """Where and how a run computes, in words that can be compared."""
    kind = device.partition(":")[0]
    return {
        "device": kind,
        "processor": torch.cuda.get_device_name(device) if kind == "cuda" else torch.backends.cpu.get_cpu_capability(),
        "world_size": str(world_size),
        "num_threads": str(torch.get_num_threads()),
        "rounding": ROUNDING,
        "deterministic": "yes" if kind == "cpu" or (kind == "cuda" and deterministic) else "no",
    }


def departures(
    saved_versions: Mapping[str, str], saved: Mapping[str, str], now: Mapping[str, str], *, has_generators: bool
) -> list[str]:
    """Why a run that goes on is not equal to the last bit to one that was never stopped; nothing if it is.

    Args:
        saved: The surroundings that the checkpoint was made in; one that does not say is taken to be the same.
        has_generators: Whether the checkpoint kept the random numbers' states.
    """
    running = versions()
    reasons = [
        f"{name} was {saved_versions[name]} and is {running.get(name, 'missing')}"
        for name in COMPUTING
        if name in saved_versions and saved_versions[name] != running.get(name)
    ]
    reasons += [
        told.format(saved[what], now[what])
        for what, told in _TOLD.items()
        if what in saved and saved[what] != now[what]
    ]
    if saved.get("rounding", "1") != now["rounding"]:
        reasons.append("it was saved by another release, which rounds otherwise")
    if now["deterministic"] == "no":
        reasons.append(f"on {now['device']} that takes 'deterministic', where the device can do it")
    if not has_generators:
        reasons.append("the checkpoint does not know where the random numbers stood")
    return reasons


def warning_of(reasons: list[str]) -> list[str]:
    """One sentence, or none."""
    if not reasons:
        return []
    return [
        f"not bit-exact: from here on the run may differ in its last bits from one never stopped; {'; '.join(reasons)}"
    ]


def be_deterministic(device: str, wanted: bool) -> None:
    """On CUDA, take the algorithms that give the same bits every time, or torch's free choice; elsewhere nothing."""
    if not device.startswith("cuda"):
        return
    if wanted:
        # cuBLAS reads it when its first handle is made.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = False
