"""Places for jobs: as many as the worker trains at once, each with a GPU to itself or with none."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jobs.tables import Job
from worker.gpus import Gpu, GpuLock

log = logging.getLogger(__name__)


@dataclass
class Slot:
    """One place.

    Args:
        gpu: The GPU that jobs in this place train on.
        visible_devices: `CUDA_VISIBLE_DEVICES` of their processes; None leaves it as it is.
    """

    gpu: Gpu | None = None
    visible_devices: str | None = None
    job: Job | None = field(default=None, init=False)
    _lock: GpuLock | None = field(default=None, init=False)
    _refusal: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if self.gpu is not None:
            self._lock = GpuLock(self.gpu.uuid)

    @property
    def device(self) -> str | None:
        """What the ledger is told that jobs in this place train on."""
        return self.gpu.uuid if self.gpu else None

    def reserve(self) -> bool:
        """Have the GPU to ourselves, if there is one; why not is said once."""
        if self._lock is None:
            return True
        try:
            taken, reason = self._lock.take(), "another process trains on it"
        except OSError as error:
            taken, reason = False, f"its lock file cannot be opened: {error}"
        if not taken:
            self.refuse(reason)
        return taken

    def refuse(self, reason: str) -> None:
        """Say why no job is taken for this GPU, but not at every look."""
        if self.gpu is not None and reason != self._refusal:
            self._refusal = reason
            log.warning("no job is taken for GPU %s (%s): %s", self.gpu.uuid, self.gpu.name, reason)

    def begin(self, job: Job, attend: Callable[[], None], then: Callable[[], None]) -> None:
        """Take care of a job in a thread of its own.

        Args:
            attend: Returns when nothing of the job is left to do.
            then: Called when the place is free again.
        """
        self.job = job
        self._refusal = ""
        threading.Thread(target=self._attend, args=[attend, then], name=job.id, daemon=True).start()

    def vacate(self) -> None:
        """Be there for others."""
        if self._lock is not None:
            self._lock.give_back()
        self.job = None

    def _attend(self, attend: Callable[[], None], then: Callable[[], None]) -> None:
        try:
            attend()
        except Exception:  # The edge of the thread: the other places go on, and the job's lease runs out.
            log.exception("job %s is given up", self.job.id if self.job else "?")
        finally:
            self.vacate()
            then()


def make_slots(capacity: int, gpus: Sequence[Gpu] | None) -> list[Slot]:
    """The worker's places.

    Args:
        capacity: How many; 0 for one on each GPU, or one without a GPU. Those beyond the GPUs compute without one.
        gpus: None if there are some that cannot be told apart: then no place sees any.
    """
    if not gpus:
        return [Slot(visible_devices="" if gpus is None else None) for _ in range(capacity or 1)]
    bound = [Slot(gpu, gpu.uuid) for gpu in gpus[: capacity or len(gpus)]]
    return bound + [Slot(visible_devices="") for _ in range(capacity - len(bound))]


def all_vacant(slots: Sequence[Slot], deadline: float) -> bool:
    """Wait until no place has a job, up to `deadline` of the monotonic clock; whether it came to that."""
    while any(slot.job for slot in slots):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
