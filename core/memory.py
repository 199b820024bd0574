"""Memory that runs out is asked for in smaller pieces, and the work that it was for is done again."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from core.devices import as_out_of_memory
from core.errors import OutOfMemory

Result = TypeVar("Result")


def until_it_fits(work: Callable[[], Result], take_less: Callable[[OutOfMemory], None], device: str) -> Result:
    """What `work` gives, as soon as there is memory for it.

    Each time it is begun anew with the random numbers that it was begun with at first, so that what it gives does not
    depend on how often it was.

    Args:
        take_less: Called when memory has run out, with what to raise if there is no less.

    Raises:
        OutOfMemory: by `take_less`.
    """
    generators = _generators(device)
    while True:
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            refused = as_out_of_memory(error)
            if refused is None:
                raise
        # Outside of the handler: its traceback holds on to what the work has made.
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        take_less(refused)
        _put_back(generators, device)


def _generators(device: str) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.startswith("cuda") else states


def _put_back(states: list[torch.Tensor], device: str) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
