"""Lines of a file that may come from anywhere, in constant memory. Light: no more than the standard library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from core.sources.row_json import Unfit

CHUNK_BYTES = 1 << 20

MAX_LINE_BYTES = 64 << 20
"""A longer line is passed over. So is a record of CSV that goes on for longer, whatever lines it has."""

TOO_LONG = f"is longer than {MAX_LINE_BYTES >> 20} MiB"
_BOM = b"\xef\xbb\xbf"


def lines(file: BinaryIO) -> Iterator[bytes | None]:
    """Lines without their ends, from the first one without a byte order mark; None for one that is too long."""
    parts: list[bytes] = []
    num_bytes, mark = 0, _BOM
    while chunk := file.read(CHUNK_BYTES):
        *whole, rest = chunk.removeprefix(mark).split(b"\n")
        mark = b""
        for piece in whole:
            num_bytes += len(piece)
            yield None if num_bytes > MAX_LINE_BYTES else b"".join((*parts, piece))
            parts, num_bytes = [], 0
        num_bytes += len(rest)
        parts = [*parts, rest] if num_bytes <= MAX_LINE_BYTES else []
    if num_bytes:
        yield None if num_bytes > MAX_LINE_BYTES else b"".join(parts)


def decoded(line: bytes | None) -> str:
    """The text of a line.

    Raises:
        Unfit: it is none, or the line is too long.
    """
    if line is None:
        raise Unfit(TOO_LONG)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unfit(f"is not UTF-8: its byte {error.start + 1} cannot be decoded") from None
