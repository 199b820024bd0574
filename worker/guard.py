"""A holder that cannot renew its lease ends its run, even while it waits for a ledger that does not answer at all."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from worker.process import ChildProcess
from worker.tenure import Tenure


class Guard:
    """Kills the child when its lease has not been renewed for too long.

    The supervisor does so itself when the ledger says that it is away. A network that swallows every packet says
    nothing: then only someone who does not ask can still count the seconds.

    Args:
        tenure: Knows when the lease was last renewed.
        child: What trains.
        seconds: Without a renewal; less than others wait before they claim the job.
    """

    def __init__(self, tenure: Tenure, child: ChildProcess, seconds: float) -> None:
        self._tenure = tenure
        self._child = child
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="guard")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while (left := self._tenure.renewed_at + self._seconds - time.monotonic()) > 0:
            if self._over.wait(left):
                return
        self._tenure.give_up()
        self._child.kill()
