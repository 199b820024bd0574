"""The child that waits: it has imported torch already, so that a job's first step need not.

Importing takes two to three seconds, most of the time from a request to its first step. The spare holds no GPU and no
job; it is ended with its worker, and one that died is simply replaced.
"""

from __future__ import annotations

from collections.abc import Callable

from worker.process import ChildProcess


class Spare:
    """At most one waiting child.

    Args:
        enabled: If not, every job gets a child that starts when it is needed.
        start: Starts a child.
    """

    def __init__(self, enabled: bool, start: Callable[[], ChildProcess] = ChildProcess) -> None:
        self._enabled = enabled
        self._start = start
        self._waiting: ChildProcess | None = None

    def prepare(self) -> None:
        """Have one wait, if none does."""
        if self._enabled and not self._waits():
            self.close()
            self._waiting = self._start()

    def take(self) -> ChildProcess:
        """The one that waits, or else a new one; it is the caller's from here on."""
        if not self._waits():
            return self._start()
        waiting, self._waiting = self._waiting, None
        assert waiting is not None
        return waiting

    def close(self) -> None:
        """End the one that waits."""
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.close()
            self._waiting = None

    def _waits(self) -> bool:
        return self._waiting is not None and self._waiting.exit_code is None
