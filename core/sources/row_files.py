"""Records of a file, one after the other, in constant memory: lines of JSON, of CSV, batches of Parquet.

Each reader gives (number, row or the reason why it is none). Light: pyarrow is imported where a Parquet file is read.
"""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

from core.errors import SourceColumns, SourceNotReadable
from core.sources.row_json import Unfit, parse_json
from core.sources.row_kinds import Row, RowMaker, fields_of_rows, makes_rows, num_characters

CHUNK_BYTES = 1 << 20

MAX_LINE_BYTES = 64 << 20
"""A longer line is passed over. So is a record of CSV that goes on for longer, whatever lines it has."""

MAX_DELIMITERS = 1_000_000
"""In one record of CSV: a field costs sixty bytes."""

MAX_COLUMNS = 10_000

BATCH_ROWS = 32
"""Of Parquet at a time: one word of a dictionary may stand for megabytes in every row."""

UNPACKED_TIMES = 200
"""As many bytes as a Parquet file may become for each of its own, beside `UNPACKED_BYTES`; some never end."""

UNPACKED_BYTES = 64 << 20
ROW_BYTES = 64

Numbered: TypeAlias = tuple[int, Row | str]
"""A row or what is wrong with it, and where it is."""

_TOO_LONG = f"is longer than {MAX_LINE_BYTES >> 20} MiB"
_BOM = b"\xef\xbb\xbf"
_DELIMITERS = (",", "\t", ";")


def json_rows(file: BinaryIO, columns: Mapping[str, str]) -> Iterator[Numbered]:
    """Of one JSON object per line; blank lines are nothing."""
    maker = RowMaker(columns)
    for number, line in enumerate(lines(file), start=1):
        if line is not None and (not line or line.isspace()):
            continue
        try:
            yield number, maker.row(parse_json(_decoded(line)))
        except Unfit as unfit:
            yield number, unfit.reason


def csv_rows(file: BinaryIO, columns: Mapping[str, str], name: str) -> Iterator[Numbered]:
    """Of CSV or TSV with a header; the delimiter is the one of three that gives the header the most fields.

    Raises:
        SourceColumns: the header's names are not those of any kind of row.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))  # One for the whole process.
    records = _Records(file)
    try:
        header = records.header()
    except Unfit as unfit:
        raise SourceColumns(f"the header of source '{name}' {unfit.reason}") from None
    check_columns_of(header, columns, name)
    maker = RowMaker(columns, in_table=True)
    for number, cells in records:
        if isinstance(cells, str):
            yield number, cells
        elif len(cells) != len(header):
            yield number, f"has {len(cells)} fields, and the header has {len(header)}"
        else:
            try:
                yield number, maker.row(dict(zip(header, cells, strict=True)))
            except Unfit as unfit:
                yield number, unfit.reason


def parquet_rows(file: BinaryIO, columns: Mapping[str, str], name: str, size_bytes: int) -> Iterator[Numbered]:
    """Of a Parquet file, of which only the columns are read that rows are made of.

    Raises:
        SourceNotReadable: it is none, it is damaged, or it becomes far more than it is.
        SourceColumns: its columns are not those of any kind of row.
    """
    maker = RowMaker(columns, in_table=True)
    left = UNPACKED_TIMES * size_bytes + UNPACKED_BYTES
    for number, record in enumerate(_parquet_records(file, columns, name), start=1):
        found = _row_of_cells(maker, record)
        left -= ROW_BYTES + (0 if isinstance(found, str) else num_characters(found))
        if left < 0:
            said = f"becomes more than {UNPACKED_TIMES} times its size, which no text does"
            raise SourceNotReadable(f"source '{name}' {said}")
        yield number, found


def _parquet_records(file: BinaryIO, columns: Mapping[str, str], name: str) -> Iterator[Any]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        said = "is a Parquet file, and pyarrow, which reads those, is not installed: pip install 'ratchet[parquet]'"
        raise SourceNotReadable(f"source '{name}' {said}") from None
    try:
        # Neither whole row groups nor columns that nobody asks for come into memory.
        opened = parquet.ParquetFile(file, pre_buffer=False, buffer_size=CHUNK_BYTES)
        header = [str(column) for column in opened.schema_arrow.names]
        check_columns_of(header, columns, name)
        wanted = [column for column in (columns.get(field, field) for field in fields_of_rows()) if column in header]
        for batch in opened.iter_batches(BATCH_ROWS, columns=wanted, use_threads=False):
            yield from _records_in(batch)
    except MemoryError:
        said = "a part of it takes more memory than there is; write it with smaller row groups"
        raise SourceNotReadable(f"source '{name}' cannot be read as Parquet: {said}") from None
    # A damaged file meets pyarrow in many places, in some of which Python is the first to notice.
    except (arrow.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        said = str(error).strip().partition("\n")[0][:200]
        raise SourceNotReadable(f"source '{name}' cannot be read as Parquet: {said}") from None


def check_columns_of(header: list[str], columns: Mapping[str, str], name: str) -> None:
    """Refuse a table from which no row can be made.

    Raises:
        SourceColumns: with the columns that there are.
    """
    there = ", ".join(f"'{column[:40]}'" for column in header[:12]) + (", …" if len(header) > 12 else "")
    for column in columns.values():
        if column not in header:
            raise SourceColumns(f"source '{name}' has no column '{column[:40]}': it has {there or 'none'}")
    if not makes_rows(header, columns):
        needed = "'text', 'prompt' and 'completion', 'messages', or 'prompt', 'chosen' and 'rejected'"
        said = f"it has {there or 'no columns'} and needs {needed}; a column of another name can be named in columns"
        raise SourceColumns(f"no row can be made of source '{name}': {said}")


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


class _Records:
    """Records of CSV with the number of the line that each begins at; a string says what is wrong with one."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _LinesOfRecord(lines(file))

    def header(self) -> list[str]:
        """The names of the columns, from the first line that is not blank.

        Raises:
            Unfit: it cannot be decoded, is too long, or has too many.
        """
        line = next((line for line in self._lines if line.strip()), "")
        if max(map(line.count, _DELIMITERS)) >= MAX_COLUMNS:
            raise Unfit(f"has more than {MAX_COLUMNS:,} columns")
        found = [_split(line, delimiter) for delimiter in _DELIMITERS]
        header = max(found, key=len)
        self._lines.delimiter = _DELIMITERS[found.index(header)]
        return [name.strip() for name in header]

    def __iter__(self) -> Iterator[tuple[int, list[str] | str]]:
        reader = csv.reader(self._lines, delimiter=self._lines.delimiter, strict=True)
        while True:
            number = self._lines.begin()
            try:
                cells = next(reader)
            except StopIteration:
                return
            except Unfit as unfit:
                yield number, unfit.reason
            except csv.Error as error:
                yield number, f"is no CSV: {error}"
            else:
                if cells:
                    yield number, cells


class _LinesOfRecord:
    """What `csv` reads: as many lines as a record asks for, within what a record may have."""

    def __init__(self, found: Iterable[bytes | None]) -> None:
        self._found = iter(found)
        self.delimiter = _DELIMITERS[0]
        self._number = self._num_bytes = self._num_delimiters = 0

    def begin(self) -> int:
        """A new record; returns the number of its first line."""
        self._num_bytes = self._num_delimiters = 0
        return self._number + 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._found)
        self._number += 1
        text = _decoded(line)
        self._num_bytes += len(text) + 1
        if self._num_bytes > MAX_LINE_BYTES:
            raise Unfit(f"{_TOO_LONG}, or its quotes have no end")
        self._num_delimiters += text.count(self.delimiter)
        if self._num_delimiters > MAX_DELIMITERS:
            raise Unfit(f"has more than {MAX_DELIMITERS:,} delimiters")
        return f"{text}\n"


def _split(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _decoded(line: bytes | None) -> str:
    if line is None:
        raise Unfit(_TOO_LONG)
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unfit(f"is not UTF-8: its byte {error.start + 1} cannot be decoded") from None


def _records_in(batch: Any) -> Iterator[Any]:
    """The rows of a batch; one that Python has no value for comes as what is wrong with it."""
    try:
        found: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):
        found = [_record_at(batch, index) for index in range(batch.num_rows)]
    return iter(found)


def _record_at(batch: Any, index: int) -> Any:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return "is not UTF-8"
    except (ValueError, OverflowError):
        return "has a value that cannot be read"


def _row_of_cells(maker: RowMaker, record: Any) -> Row | str:
    if isinstance(record, str):
        return record
    try:
        found = maker.row(record)
    except Unfit as unfit:
        return unfit.reason
    return found if num_characters(found) <= MAX_LINE_BYTES else _TOO_LONG
