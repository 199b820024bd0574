"""Contestants take turns, so that whatever else the machine does meets all of them alike.

Each has a process of its own, as it would have at its user's: how it treats memory and threads is a part of it.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from _row import spread

CEILING_SIDE = 2048
COPIED_BYTES = 256 << 20


class Contestant(Protocol):
    """Something that makes optimizer updates."""

    def updates(self, count: int) -> float:
        """Make so many; returns the seconds that they took."""
        ...

    def loss(self) -> float:
        """Of the last update, in nats per token."""
        ...


class Seat:
    """A contestant in a process of its own.

    Args:
        make: Makes it there.
    """

    def __init__(self, make: Callable[[], Contestant]) -> None:
        spawning = multiprocessing.get_context("spawn")
        self._end, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_serve, args=(make, theirs), daemon=True)
        self._process.start()

    def updates(self, count: int) -> float:
        """As of the contestant."""
        return self._asked(count)

    def loss(self) -> float:
        """As of the contestant."""
        return self._asked(None)

    def leave(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.join()

    def _asked(self, what: int | None) -> float:
        self._end.send(what)
        return float(self._end.recv())


def _serve(make: Callable[[], Contestant], end: Connection) -> None:
    contestant = make()
    while True:
        count = end.recv()
        end.send(contestant.loss() if count is None else contestant.updates(count))


def alternate(
    makers: Mapping[str, Callable[[], Contestant]], *, rounds: int, updates: int, tokens: int
) -> dict[str, Any]:
    """Rounds in which each makes `updates` updates of `tokens` tokens; ours is the first.

    Args:
        makers: What makes each of them; it is sent to another process.

    Returns:
        Tokens per second of each, by how much ours is faster than each in the median of the rounds, and the last loss.
    """
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    contestants = {name: Seat(make) for name, make in makers.items()}
    for contestant in contestants.values():
        contestant.updates(2)
    for _ in range(rounds):
        for name, contestant in contestants.items():
            seconds[name].append(contestant.updates(updates) / updates)
    ours = next(iter(contestants))
    last_loss = {name: round(contestant.loss(), 3) for name, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.leave()
    return {
        "tokens_per_second": {name: round(tokens / statistics.median(took)) for name, took in seconds.items()},
        "times_faster": {
            name: round(statistics.median(_ratios(took, seconds[ours])), 2)
            for name, took in seconds.items()
            if name != ours
        },
        "seconds_per_update": {name: spread(took) for name, took in seconds.items()},
        "last_loss": last_loss,
    }


def ceilings(device: str = "cpu") -> dict[str, float]:
    """What the machine can do at the best: matrix products in TFLOP/s, and copying in GB/s."""
    import torch

    found = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        left, right = (torch.ones(CEILING_SIDE, CEILING_SIDE, device=device, dtype=dtype) for _ in range(2))
        best = min(_seconds(lambda left=left, right=right: left @ right, device) for _ in range(6))
        found[f"product_{name}_tflops"] = round(2 * CEILING_SIDE**3 / best / 1e12, 2)
    source = torch.ones(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(_seconds(lambda: target.copy_(source), device) for _ in range(6))
    # Each byte is read once and written once.
    found["copy_gb_per_second"] = round(2 * COPIED_BYTES / best / 1e9, 1)
    return found


def _ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [their / our for their, our in zip(theirs, ours, strict=True)]


def _seconds(work: Any, device: str) -> float:
    import torch

    began = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - began
