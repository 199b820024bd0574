"""How fast a run is, and how much memory it takes."""

from __future__ import annotations

import math
import os
import time
from functools import lru_cache

import psutil
import torch


class Clock:
    """How fast the updates alone are, without evaluations and saves; and how long all of it has taken.

    Args:
        tokens_per_step: Tokens in one update, until the first one is made.
    """

    def __init__(self, tokens_per_step: int) -> None:
        self.tokens_per_step: float = tokens_per_step
        self.seconds_per_step = math.nan
        self.began = time.perf_counter()
        self._step_began = self.began

    def start(self) -> None:
        """An update begins."""
        self._step_began = time.perf_counter()

    def stop(self, num_tokens: int) -> None:
        """It is made, of so many tokens: rows of examples are as long as the longest of their batch."""
        took = time.perf_counter() - self._step_began
        # A moving average over about ten steps: steady enough to read, quick enough to show a change.
        self.tokens_per_step = (
            num_tokens if math.isnan(self.seconds_per_step) else 0.9 * self.tokens_per_step + 0.1 * num_tokens
        )
        self.seconds_per_step = took if math.isnan(self.seconds_per_step) else 0.9 * self.seconds_per_step + 0.1 * took

    @property
    def tokens_per_second(self) -> float:
        """Of the last ten updates or so."""
        return self.tokens_per_step / self.seconds_per_step

    @property
    def elapsed(self) -> float:
        """Seconds since the run was put together."""
        return time.perf_counter() - self.began


def memory_bytes(device: str) -> int:
    """Allocated on the GPU, or resident in this process."""
    if device.startswith("cuda"):
        return int(torch.cuda.memory_allocated(device))
    return int(_process(os.getpid()).memory_info().rss)


@lru_cache(maxsize=1)
def _process(number: int) -> psutil.Process:
    """Made once: it reads several files to know itself, and every step asks."""
    return psutil.Process(number)
