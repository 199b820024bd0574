"""Records of a file, one after the other, in constant memory: lines of JSON, of CSV, batches of Parquet.

Each reader gives (number, row or the reason why it is none). Light: pyarrow is imported where a Parquet file is read.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, TypeAlias

from core.errors import SourceColumns, SourceNotReadable
from core.sources import lines
from core.sources.csv_records import Records
from core.sources.lines import CHUNK_BYTES, decoded
from core.sources.row_json import Unfit, parse_json
from core.sources.row_kinds import Row, RowMaker, fields_read, makes_rows, num_characters

BATCH_ROWS = 32
"""Of Parquet at a time: one word of a dictionary may stand for megabytes in every row."""

UNPACKED_TIMES = 200
"""As many bytes as a Parquet file may become for each of its own, beside `UNPACKED_BYTES`; some never end."""

UNPACKED_BYTES = 64 << 20
ROW_BYTES = 64

Numbered: TypeAlias = tuple[int, Row | str]
"""A row or what is wrong with it, and where it is."""


def json_rows(file: BinaryIO, columns: Mapping[str, str]) -> Iterator[Numbered]:
    """Of one JSON object per line; blank lines are nothing."""
    maker = RowMaker(columns)
    for number, line in enumerate(lines.lines(file), start=1):
        if line is not None and (not line or line.isspace()):
            continue
        try:
            yield number, maker.row(parse_json(decoded(line)))
        except Unfit as unfit:
            yield number, unfit.reason


def csv_rows(file: BinaryIO, columns: Mapping[str, str], name: str) -> Iterator[Numbered]:
    """Of CSV or TSV with a header; the delimiter is the one of three that gives the header the most fields.

    Raises:
        SourceColumns: the header's names are not those of any kind of row.
    """
    records = Records(file)
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
        wanted = [column for column in dict.fromkeys(_read_of(columns)) if column in header]
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
    there = ", ".join(map(_shown, header[:12])) + (", …" if len(header) > 12 else "")
    for column in _read_of(columns):
        if header.count(column) > 1:
            raise SourceColumns(
                f"source '{name}' has {header.count(column)} columns {_shown(column)}: rename all but one"
            )
    for column in columns.values():
        if column not in header:
            raise SourceColumns(f"source '{name}' has no column {_shown(column)}: it has {there or 'none'}")
    if not makes_rows(header, columns):
        needed = "'text', 'prompt' and 'completion', 'messages', or 'prompt', 'chosen' and 'rejected'"
        said = f"it has {there or 'no columns'} and needs {needed}"
        how = (
            f'; a job says which is which in columns, such as {{"text": {json.dumps(header[0][:40])}}}'
            if header
            else ""
        )
        raise SourceColumns(f"source '{name}' needs its columns to be named: {said}{how}")


def _shown(column: str) -> str:
    return f"'{' '.join(column[:40].split())}'"


def _read_of(columns: Mapping[str, str]) -> list[str]:
    """The columns that are looked at, if they are there."""
    return [columns.get(field, field) for field in fields_read()]


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
    return found if num_characters(found) <= lines.MAX_LINE_BYTES else lines.TOO_LONG
