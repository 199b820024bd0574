"""What is known of a source without a tokenizer, found in one pass over it and remembered until the file changes."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from core.errors import SourceAltered, SourceEmpty, SourceError, SourceNoRows, SourceNotReadable
from core.sources.rows import (
    NO_COLUMNS,
    BadRow,
    Row,
    RowKind,
    SourceFormat,
    TextRow,
    format_of,
    num_characters,
    read_rows,
)

NUM_BAD_ROWS_KEPT = 20
NUM_BAD_ROWS_SAID = 3
NUM_REMEMBERED = 4096
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What a source has in it.

    Args:
        num_characters: Of all rows that can be used, whether they train or not.
        sha256: Of the file's bytes.
        num_rows: That can be used. A text's rows are pieces of up to 1 MiB.
        bad_rows: The first of those that cannot be used.
    """

    size_bytes: int
    num_characters: int
    sha256: str
    format: SourceFormat
    kind: RowKind
    num_rows: int
    num_bad_rows: int = 0
    bad_rows: tuple[BadRow, ...] = ()


def facts_of(file: BinaryIO, name: str, columns: Mapping[str, str] = NO_COLUMNS) -> SourceFacts:
    """Read an open file from its beginning to its end, in constant memory.

    Raises:
        SourceError: not one row of it can be used, or it cannot be read at all.
    """
    format = format_of(name)
    hashed = _Hashed(file)
    tally = _Tally()
    # Parquet is read from many places, so its bytes are hashed in a pass of their own.
    source = file if format is SourceFormat.PARQUET else cast(BinaryIO, hashed)
    for row in read_rows(source, format, columns, name=name):
        tally.add(row)
    if format is SourceFormat.PARQUET:
        hashed.seek(0)
    hashed.read_rest()
    if tally.num_rows == 0 and tally.bad_rows:
        raise _no_rows(name, format, tally.bad_rows)
    if tally.kind is None or tally.is_blank:
        raise SourceEmpty(f"source '{name}' is empty: there is nothing to learn from")
    return SourceFacts(
        hashed.num_bytes,
        tally.num_characters,
        hashed.sha256,
        format,
        tally.kind,
        tally.num_rows,
        tally.num_bad_rows,
        tuple(tally.bad_rows),
    )


def sha256_of(file: BinaryIO) -> str:
    """The hash of an open file's bytes, from its beginning on."""
    hashed = _Hashed(file)
    hashed.seek(0)
    hashed.read_rest()
    return hashed.sha256


def unchanged_key(file: BinaryIO) -> tuple[int, int, int]:
    """What stays the same for as long as a file does."""
    status = os.fstat(file.fileno())
    return status.st_mtime_ns, status.st_size, status.st_ino


class FactsMemory:
    """Facts of sources, or why they have none, by root, name, columns, and what `unchanged_key` says of the file.

    Args:
        find: Reads a file that is not known.
    """

    def __init__(
        self, find: Callable[[BinaryIO, str, Mapping[str, str]], SourceFacts], capacity: int = NUM_REMEMBERED
    ) -> None:
        self._capacity = capacity
        self._find = find
        self._known: OrderedDict[Hashable, SourceFacts | SourceError] = OrderedDict()
        self._lock = threading.Lock()
        # Whoever asks while another reads the same file waits for that one; two files may share a lock.
        self._reading = tuple(threading.Lock() for _ in range(16))

    def known(self, root: Path, name: str, file: BinaryIO, columns: Mapping[str, str]) -> SourceFacts | None:
        """What is remembered of a file as it is now.

        Raises:
            SourceError: it is remembered that it cannot be used.
        """
        return self._recall(_key(root, name, file, columns))

    def facts(self, root: Path, name: str, file: BinaryIO, columns: Mapping[str, str]) -> SourceFacts:
        """The same, read now if it is not known.

        Raises:
            SourceError: it cannot be used; `SourceAltered` if it was written while it was read.
        """
        key = _key(root, name, file, columns)
        with self._reading[hash(key) % len(self._reading)]:
            facts = self._recall(key)
            if facts is None:
                facts = self._read(key, name, file, columns)
        return facts

    def _read(self, key: Hashable, name: str, file: BinaryIO, columns: Mapping[str, str]) -> SourceFacts:
        before = unchanged_key(file)
        found: SourceFacts | SourceError
        try:
            found = self._find(file, name, columns)
        except SourceError as error:
            found = error
        if unchanged_key(file) != before:
            raise SourceAltered(f"source '{name}' changed while it was read: try again when it is whole")
        if isinstance(found, SourceNotReadable) and found.may_pass:
            raise found
        with self._lock:
            self._known[key] = found
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return _told(found)

    def _recall(self, key: Hashable) -> SourceFacts | None:
        with self._lock:
            found = self._known.get(key)
            if found is not None:
                self._known.move_to_end(key)
        return None if found is None else _told(found)


def _key(root: Path, name: str, file: BinaryIO, columns: Mapping[str, str]) -> Hashable:
    return root, name, tuple(sorted(columns.items())), unchanged_key(file)


def _told(found: SourceFacts | SourceError) -> SourceFacts:
    if isinstance(found, SourceError):
        raise found.with_traceback(None)  # Else it would remember everyone who was ever told.
    return found


class _Tally:
    """What is counted of rows as they come."""

    def __init__(self) -> None:
        self.kind: RowKind | None = None
        self.is_blank = True
        self.num_rows = self.num_characters = self.num_bad_rows = 0
        self.bad_rows: list[BadRow] = []

    def add(self, row: Row | BadRow) -> None:
        """One more."""
        if isinstance(row, BadRow):
            self.num_bad_rows += 1
            if len(self.bad_rows) < NUM_BAD_ROWS_KEPT:
                self.bad_rows.append(row)
            return
        self.kind = row.kind
        self.num_rows += 1
        self.num_characters += num_characters(row)
        # Of a text's pieces some may be blank, of any other rows none is.
        self.is_blank = self.is_blank and isinstance(row, TextRow) and row.text.isspace()


class _Hashed:
    """A file whose bytes are hashed as they are read, from its beginning on."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.num_bytes = 0

    @property
    def sha256(self) -> str:
        """Of what was read."""
        return self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        """Up to so many bytes."""
        chunk = self._file.read(size)
        self._digest.update(chunk)
        self.num_bytes += len(chunk)
        return chunk

    def seek(self, offset: int, whence: int = 0) -> int:
        """Hash anew from there on; only from its beginning is it the file's hash."""
        self._digest, self.num_bytes = hashlib.sha256(), 0
        return self._file.seek(offset, whence)

    def read_rest(self) -> None:
        """Go on to the end."""
        while self.read(READ_BYTES):
            pass


def _no_rows(name: str, format: SourceFormat, bad_rows: list[BadRow]) -> SourceError:
    place = "row" if format is SourceFormat.PARQUET else "line"
    first = "; ".join(f"{place} {row.number} {row.reason}" for row in bad_rows[:NUM_BAD_ROWS_SAID])
    return SourceNoRows(
        f"source '{name}' has no row that can be used: {first}", [(row.number, row.reason) for row in bad_rows]
    )
