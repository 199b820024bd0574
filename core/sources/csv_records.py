"""Records of CSV, one after the other, in constant memory. Light: no more than the standard library."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import accumulate, chain, islice, takewhile
from typing import BinaryIO

from core.sources import lines as files
from core.sources.lines import CHUNK_BYTES, decoded
from core.sources.row_json import Unfit

MAX_DELIMITERS = 1_000_000
"""In one record of CSV: a field costs sixty bytes."""

MAX_COLUMNS = 10_000

MAX_HEADER_LINES = 100
"""Names of columns may go over several lines in quotes."""

_DELIMITERS = (",", "\t", ";")

# Possessive, so that a line of megabytes is passed over without a memory of how.
_TO_THE_CLOSING = re.compile(r'[^"]*+(?:""[^"]*+)*+"')
_WHOLE_FIELDS = {
    delimiter: re.compile(rf'(?:(?:"[^"]*+(?:""[^"]*+)*+"|[^"{delimiter}][^{delimiter}]*+)?+{delimiter})*+')
    for delimiter in _DELIMITERS
}
"""Of a line of CSV: what is left then is the last field."""


class Records:
    """Records of CSV with the number of the line that each begins at; a string says what is wrong with one."""

    def __init__(self, file: BinaryIO) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), files.MAX_LINE_BYTES))  # One for the whole process.
        self._lines = _LinesOfRecord(files.lines(file))

    def header(self) -> list[str]:
        """The names of the columns, from the first line that is not blank, and those that its quotes go on to.

        Raises:
            Unfit: it cannot be decoded, is too long, or has too many.
        """
        line = next((line for line in self._lines if line.strip()), "").removesuffix("\n")
        if max(map(line.count, _DELIMITERS)) >= MAX_COLUMNS:
            raise Unfit(f"has more than {MAX_COLUMNS:,} columns")
        there = [line, *self._lines.ahead()] if '"' in line else [line]
        found = [_first_record(there, delimiter) for delimiter in _DELIMITERS]
        header, num_lines = max(found, key=lambda record: len(record[0]))
        if line and not header:
            raise Unfit("is no CSV: its quotes are not closed, or not where they may be")
        for _ in range(num_lines - 1):
            next(self._lines)
        self._lines.delimiter = _DELIMITERS[found.index((header, num_lines))]
        return [name.strip() for name in header]

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        reader = csv.reader(self._lines, delimiter=self._lines.delimiter, strict=True)
        while True:
            number = self._lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except (Unfit, csv.Error) as error:
                yield from self._lines.lost(error)
            else:
                self._lines.last = ""
                if cells:
                    yield number, cells


class _LinesOfRecord:
    """What `csv` reads: as many lines as a record asks for, within what a record may have."""

    def __init__(self, found: Iterable[bytes | None]) -> None:
        self._found = iter(found)
        self.delimiter = _DELIMITERS[0]
        self.last = ""
        self._number = 0
        self.begin()

    def begin(self) -> int:
        """A new record; returns the number of its first line."""
        self.last = ""
        self._num_bytes = self._num_delimiters = self._opened = 0
        self._is_over = False
        self._first = self._number + 1
        return self._first

    def ahead(self) -> list[str]:
        """Some of the lines that come next, as far as they can be decoded; they are still to come."""
        seen: list[bytes | None] = []
        found: list[str] = []
        with suppress(Unfit):
            for line in islice(self._found, MAX_HEADER_LINES - 1):
                seen.append(line)
                found.append(decoded(line))
                if sum(map(len, found)) > CHUNK_BYTES:
                    break
        self._found = chain(seen, self._found)
        return found

    def lost(self, error: Unfit | csv.Error) -> Iterator[tuple[int, str]]:
        """Of each line of a record that is none, why: the first has the reason, and the others are gone with it."""
        opened, more = self._opened or self._first, range(self._first + 1, self._number + 1)
        reason = error.reason if isinstance(error, Unfit) else f"is no CSV: {error}"
        if self._is_over:
            reason = f"has {self._quote} is never closed"
        elif more and isinstance(error, csv.Error):
            reason = f"{reason} on line {self._number}"
        went = f": {len(more):,} line{'s' if len(more) > 1 else ''} went with it" if more else ""
        yield self._first, f"{reason}{went}"
        for number in more:
            yield number, f"went with the quote that opens on line {opened}"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.last:
            self._opened = self._open_after(self.last)
            self.last = ""  # Two long lines at once are one too many.
        try:
            line = next(self._found)
        except StopIteration:
            self._is_over = True
            raise
        self._number += 1
        text = decoded(line)
        self._num_bytes += len(text) + 1
        if self._num_bytes > files.MAX_LINE_BYTES:
            raise Unfit(f"has {self._quote} is still open after {files.MAX_LINE_BYTES >> 20} MiB")
        self._num_delimiters += text.count(self.delimiter)
        if self._num_delimiters > MAX_DELIMITERS:
            raise Unfit(f"has more than {MAX_DELIMITERS:,} delimiters")
        self.last = f"{text}\n"
        return self.last

    @property
    def _quote(self) -> str:
        return f"a quote that opens on line {self._opened} and" if self._opened > self._first else "a quote that"

    def _open_after(self, line: str) -> int:
        """The line that the quote opens on that is open at the end of this one; 0 if none is."""
        place = 0
        if self._opened:
            closing = _TO_THE_CLOSING.match(line)
            if closing is None:
                return self._opened
            place = closing.end()
        rest = _WHOLE_FIELDS[self.delimiter].match(line, place)
        return self._number if rest and line[rest.end() : rest.end() + 1] == '"' else 0


def _first_record(there: list[str], delimiter: str) -> tuple[list[str], int]:
    """What the first of some lines begin with, and how many lines that takes; nothing if it is no record."""
    num_delimiters = accumulate(line.count(delimiter) for line in there)
    few = takewhile(lambda line: next(num_delimiters) < MAX_COLUMNS, there)
    reader = csv.reader((f"{line}\n" for line in few), delimiter=delimiter, strict=True)
    try:
        return next(reader, []), reader.line_num
    except csv.Error:
        return [], 1
