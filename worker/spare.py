"""The child that waits: it has imported torch already, so that a job's first step need not.

Importing takes one to three seconds, most of the time from a request to its first step. The spare holds no GPU and no
job; it is ended with its worker, and one that died is replaced after a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from worker.process import ChildProcess

log = logging.getLogger(__name__)

AGAIN_SECONDS = 2.0
"""After one that died, or could not be started: whatever did that is likely to do it again."""


class Spare:
    """At most one waiting child, for all threads of the worker.

    The main thread is to prepare it: a child dies with the thread that started it.

    Args:
        enabled: If not, every job gets a child that starts when it is needed.
        start: Starts a child.
    """

    def __init__(self, enabled: bool, start: Callable[[], ChildProcess] = ChildProcess) -> None:
        self._enabled = enabled
        self._start = start
        self._waiting: ChildProcess | None = None
        self._turn = threading.Lock()
        self._not_before = -float("inf")

    def prepare(self) -> None:
        """Have one wait, if none does; one that does not come up, or does not live, is let be for a while."""
        with self._turn:
            if not self._enabled or self._waits():
                return
            if self._waiting is not None:
                self._put_off(f"process {self._waiting.pid}, which waited for a job, ended: {self._waiting.exit_code}")
                self._end()
            if time.monotonic() >= self._not_before:
                self._start_one()

    def take(self) -> ChildProcess:
        """The one that waits, or else a new one; it is the caller's from here on."""
        with self._turn:
            if self._waiting is not None and self._waits():
                waiting, self._waiting = self._waiting, None
                return waiting
        return self._start()

    def close(self) -> None:
        """End the one that waits."""
        with self._turn:
            self._end()

    def _start_one(self) -> None:
        try:
            self._waiting = self._start()
        except OSError as error:
            self._put_off(f"no process to wait for a job can be started now: {error}")

    def _put_off(self, reason: str) -> None:
        log.warning("%s", reason)
        self._not_before = time.monotonic() + AGAIN_SECONDS

    def _end(self) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.close()
            self._waiting = None

    def _waits(self) -> bool:
        return self._waiting is not None and self._waiting.exit_code is None
