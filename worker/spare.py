"""The child that waits: it has imported torch already, so that a job's first step need not.

Importing takes two to three seconds, most of the time from a request to its first step. The spare holds no GPU and no
job; it is ended with its worker, and one that died is simply replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from worker.process import ChildProcess


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

    def prepare(self) -> None:
        """Have one wait, if none does."""
        with self._turn:
            if self._enabled and not self._waits():
                self._end()
                self._waiting = self._start()

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

    def _end(self) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.close()
            self._waiting = None

    def _waits(self) -> bool:
        return self._waiting is not None and self._waiting.exit_code is None
