"""Saves beside the loop: the state is copied at a step boundary, and written while the next steps are made.

One at a time: a save that begins waits for the one before it. What the disk refuses is raised in the training thread,
at the next step boundary, so that no run goes on for long without what it believes to be saved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from core.disk import Meanwhile, nothing
from core.events import CheckpointSaved

LOOK_SECONDS = 0.2

Publish = Callable[[Meanwhile], CheckpointSaved]
"""Writes and publishes one checkpoint, calling what it is given again and again."""


class Saver(Protocol):
    """What the loop asks of whoever keeps its checkpoints."""

    def begin(self, trainer: Any) -> None:
        """Keep the state of this moment; the one before it has been kept by then.

        Raises:
            DiskFull, StorageError: the one before it could not be kept.
        """

    def published(self, *, wait: bool = False) -> CheckpointSaved | None:
        """What has been published since the last call, if anything; with `wait`, once nothing is under way any more.

        Raises:
            DiskFull, StorageError: it could not be kept, and the earlier ones are whole.
        """


class BackgroundWriter:
    """Publishes in a thread of its own.

    Args:
        meanwhile: Called from the waiting thread as long as the writing one makes progress.
    """

    def __init__(self, meanwhile: Meanwhile = nothing) -> None:
        self._meanwhile = meanwhile
        self._thread: threading.Thread | None = None
        self._outcome: CheckpointSaved | BaseException | None = None
        self._num_signs = 0

    def begin(self, publish: Publish) -> None:
        """Publish; nothing else may be under way."""
        assert self._thread is None, "one checkpoint at a time"
        # Not a daemon: a process that ends in order has written what it began.
        self._thread = threading.Thread(target=self._write, args=(publish,), name="checkpoint-writer")
        self._thread.start()

    def finished(self, *, wait: bool = False) -> CheckpointSaved | None:
        """See `Saver.published`."""
        if self._thread is None or (self._thread.is_alive() and not wait):
            return None
        self._join(self._thread)
        self._thread, outcome, self._outcome = None, self._outcome, None
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _join(self, thread: threading.Thread) -> None:
        seen = self._num_signs
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if self._num_signs != seen:
                seen = self._num_signs
                self._meanwhile()

    def _write(self, publish: Publish) -> None:
        try:
            self._outcome = publish(self._show_life)
        except BaseException as error:  # Raised again in the thread that asks.
            self._outcome = error

    def _show_life(self) -> None:
        self._num_signs += 1
