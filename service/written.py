"""What readers get of an event: bytes, written once however many read them.

Deliberate: `id` and `event` stand before `data`, and `data` is the line that the ledger keeps, unchanged; it is ASCII,
so that no reader splits it at a separator that only Unicode knows.
"""

from __future__ import annotations

import json
from functools import cached_property

from core.events import line_of, printable
from jobs.tables import Event


class Written:
    """An event on its way to its readers."""

    def __init__(self, event: Event) -> None:
        self.seq = event.seq
        self.kind = event.kind
        self.data = event.data

    @cached_property
    def as_sse(self) -> bytes:
        """As a program reads it."""
        return f"id: {self.seq}\nevent: {self.kind}\ndata: {self.data}\n\n".encode()

    @cached_property
    def as_text(self) -> bytes:
        """As a person at a terminal reads it: its line, or nothing."""
        line = line_of(self.kind, json.loads(self.data))
        # The text may be a model's: it stays one line, and no control character of it speaks to the terminal.
        return b"" if line is None else printable(line).replace("\n", " ").encode("utf-8", "replace") + b"\n"
