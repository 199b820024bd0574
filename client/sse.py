"""Server-sent events, from bytes to messages, as the HTML standard has them.

Lines end at LF, CR LF or CR and nowhere else. `str.splitlines` also breaks at U+2028 and its kin, which are ordinary
characters inside a line here; `bytes.splitlines` knows just the three, and UTF-8 has none of them inside a character.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `id` is the last one that the stream has named, which may be an earlier message's."""

    event: str
    data: str
    id: str


class Lines:
    """Puts a byte stream's chunks together again and cuts them into lines."""

    def __init__(self) -> None:
        self._rest = b""
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The lines that `chunk` completes, each at once: a CR ends its line, and an LF that follows belongs to it."""
        if not chunk:
            return
        if self._ended_in_cr:
            chunk = chunk.removeprefix(b"\n")
        self._ended_in_cr = chunk.endswith(b"\r")
        lines = (self._rest + chunk).splitlines(keepends=True)
        self._rest = lines.pop() if lines and not lines[-1].endswith((b"\r", b"\n")) else b""
        for line in lines:
            yield line.rstrip(b"\r\n").decode("utf-8", errors="replace")


class Parser:
    """Reads one connection's stream. `last_id` and `retry_seconds` tell how to come back after it breaks.

    Args:
        last_id: The id to count from, when this is not the first connection.
        retry_seconds: How long to wait before coming back, until the server says otherwise.
    """

    def __init__(self, last_id: str = "", retry_seconds: float = 2.0) -> None:
        self.last_id = last_id
        self.retry_seconds = retry_seconds
        self._lines = Lines()
        self._at_start = True
        self._id = last_id
        self._event = ""
        self._data: list[str] = []

    def parse(self, chunks: Iterable[bytes]) -> Iterator[Message]:
        """Messages as they complete; one that the end of the stream cuts off is dropped, as the standard demands."""
        for chunk in chunks:
            yield from self.feed(chunk)

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """The messages that `chunk` completes."""
        for line in self._lines.feed(chunk):
            if self._at_start:
                self._at_start = False
                line = line.removeprefix("\ufeff")
            if line:
                self._take(line)
            elif (message := self._dispatch()) is not None:
                yield message

    def _take(self, line: str) -> None:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._event = value
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_seconds = int(value) / 1000

    def _dispatch(self) -> Message | None:
        """An id counts only once its message is whole; a message without data is none."""
        self.last_id = self._id
        event, data = self._event or "message", self._data
        self._event, self._data = "", []
        return Message(event, "\n".join(data), self.last_id) if data else None
