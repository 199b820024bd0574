"""A file on its way to the service: as many bytes as it had when it was opened, in pieces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from client.errors import ClientError

PIECE_BYTES = 1 << 18

READING_SECONDS = 300.0
"""Until the facts of a source are given up, for which the service may have to read all of it."""

READ_BYTES_PER_SECOND = 5e6
"""What a slow machine makes rows of."""


class Sending:
    """The content of one request.

    Args:
        on_progress: Called with the number of bytes sent so far.

    Raises:
        ClientError: the file cannot be read, now or on the way.
    """

    def __init__(self, path: Path, on_progress: Callable[[int], object]) -> None:
        self._path = path
        self._on_progress = on_progress
        try:
            if not path.is_file():
                raise ClientError(f"{path} is no file." if path.exists() else f"There is no file {path}.")
            self._file = path.open("rb")
        except OSError as error:
            raise ClientError(f"{path} cannot be read: {error.strerror}.") from None
        self.size_bytes = os.fstat(self._file.fileno()).st_size

    def headers(self, *, replace: bool) -> dict[str, str]:
        """Of the request."""
        length = {"Content-Length": str(self.size_bytes)}
        return length if replace else {**length, "If-None-Match": "*"}

    @property
    def patience_seconds(self) -> float:
        """How long the answer may take once all is sent."""
        return READING_SECONDS + self.size_bytes / READ_BYTES_PER_SECOND

    def __enter__(self) -> Sending:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        left = self.size_bytes
        while left:
            try:
                piece = self._file.read(min(PIECE_BYTES, left))
            except OSError as error:
                raise ClientError(f"{self._path} cannot be read: {error.strerror}.") from None
            if not piece:
                raise ClientError(f"{self._path} became shorter while it was sent; nothing of it was kept.")
            left -= len(piece)
            yield piece
            self._on_progress(self.size_bytes - left)


def as_query(columns: Mapping[str, str]) -> dict[str, str]:
    """A map of columns as the parameters of a request."""
    return {f"columns[{field}]": name for field, name in columns.items()}
