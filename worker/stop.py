"""A flag that a signal may raise at any moment."""

from __future__ import annotations


class StopSign:
    """Raised once, by a signal's handler or by anyone else.

    A threading.Event has a lock inside, for which a second signal would wait for ever if it came while the first one's
    handler held it. This has none.
    """

    def __init__(self) -> None:
        self._raised = False

    def set(self, *_: object) -> None:
        """Raise it; takes what a signal's handler is given."""
        self._raised = True

    def is_set(self) -> bool:
        """Whether it was raised."""
        return self._raised
