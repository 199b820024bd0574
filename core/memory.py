"""Memory that runs out is asked for in smaller pieces, and the work that it was for is done again.

In how many parts a batch is computed decides in which order its numbers are added, and what dropout draws. So all ranks
compute in as many parts from the next step on, wherever memory ran out, and a checkpoint keeps that one number.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from core.devices import as_out_of_memory
from core.distributed import Ranks
from core.errors import OutOfMemory
from core.events import Emit, Warned
from core.state import RunState

Result = TypeVar("Result")


@dataclass(slots=True)
class Portions:
    """How much of a batch is computed at once.

    Args:
        run: Has the number of parts.
        ranks: Those who compute in as many.
        most: No batch has more parts: its rows.
        device: This rank's.
        emit: Told when it changes.
    """

    run: RunState
    ranks: Ranks
    most: int
    device: str
    emit: Emit
    ran_short: bool = False
    """Since all ranks last agreed."""

    def until_it_fits(self, work: Callable[[], Result]) -> Result:
        """What `work` gives, in as many parts as it takes.

        Each time it is begun anew with the random numbers that it was begun with at first, so that what it gives does
        not depend on how often it was.

        Raises:
            OutOfMemory: less than one row cannot be computed.
        """
        generators = _generators(self.device)
        while True:
            try:
                return work()
            except (RuntimeError, MemoryError) as error:
                refused = as_out_of_memory(error)
                if refused is None:
                    raise
            # Outside of the handler: its traceback holds on to what the work has made.
            gc.collect()
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()
            self._take_less(refused)
            _put_back(generators, self.device)

    def mean_of_step(self, value: float) -> float:
        """The mean of a number over all ranks, who agree in the same exchange if memory ran out on one of them."""
        mean, share_short = self.ranks.means(value, float(self.ran_short))
        if share_short:
            before = self.run.num_parts
            self.run.num_parts = self.ranks.largest(before)
            self.ran_short = False
            if self.run.num_parts != before:
                self._tell("memory ran out in another process")
        return mean

    def told(self, stop: bool) -> bool:
        """Whether rank 0 says to stop; in the same exchange it says how many parts it needed to evaluate."""
        said, self.run.num_parts = self.ranks.told(int(stop), self.run.num_parts)
        self.ran_short = False
        return bool(said)

    def _take_less(self, refused: OutOfMemory) -> None:
        """Half as much at once from here on; what is learnt stays the same."""
        if self.run.num_parts >= self.most:
            raise refused
        self.run.num_parts *= 2
        self.ran_short = True
        self._tell("memory ran out")

    def _tell(self, what: str) -> None:
        self.emit(
            Warned(
                f"{what} at step {self.run.step}: from here on each batch is computed in {self.run.num_parts} parts, "
                "which takes longer; what the batches hold and count stays the same"
            )
        )


def _generators(device: str) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.startswith("cuda") else states


def _put_back(states: list[torch.Tensor], device: str) -> None:
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
