"""Rows of training data from a file of any of four formats, streamed; the bad ones are told and never stop the others.

    text      anything that is UTF-8: pieces of up to 1 MiB, cut anywhere, which make the text when put together
    jsonl     one JSON object per line
    csv       CSV or TSV with a header
    parquet   with pyarrow, of the extra `parquet`

`row_kinds` says what rows there are. All rows of a file are of one kind: that of its first good one. Light.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from pathlib import PurePosixPath
from typing import BinaryIO

from core.errors import SourceColumns, SourceNotReadable, SourceNotText
from core.sources.lines import CHUNK_BYTES
from core.sources.row_files import Numbered, csv_rows, json_rows, parquet_rows
from core.sources.row_kinds import (
    NO_COLUMNS,
    BadRow,
    ChatRow,
    CompletionRow,
    PreferenceRow,
    Row,
    RowKind,
    TextRow,
    fields_of_rows,
    fits_a_kind,
    num_characters,
    numbered,
)
from core.sources.row_messages import Message

__all__ = [
    "NO_COLUMNS",
    "BadRow",
    "ChatRow",
    "CompletionRow",
    "Message",
    "PreferenceRow",
    "Row",
    "RowKind",
    "SourceFormat",
    "TextRow",
    "check_columns",
    "format_of",
    "num_characters",
    "place_in",
    "read_rows",
]

PIECE_BYTES = CHUNK_BYTES - 3
"""Of text that is read at once: with what is left of a character from before, a piece has 1 MiB at most."""


class SourceFormat(StrEnum):
    """How a file holds its rows."""

    TEXT = "text"
    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


_FORMATS = {
    ".jsonl": SourceFormat.JSONL,
    ".ndjson": SourceFormat.JSONL,
    ".json": SourceFormat.JSONL,
    ".csv": SourceFormat.CSV,
    ".tsv": SourceFormat.CSV,
    ".parquet": SourceFormat.PARQUET,
}

_COMPRESSED = (
    (re.compile(rb"\x1f\x8b"), "gzip", "gunzip"),
    (re.compile(rb"PK(\x03\x04|\x05\x06)"), "zip", "unzip"),
    (re.compile(rb"\xfd7zXZ\x00"), "xz", "unxz"),
    (re.compile(rb"\x28\xb5\x2f\xfd"), "zstd", "unzstd"),
    (re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"), "bzip2", "bunzip2"),
)
"""First bytes, the name for people, and what undoes it."""

_PARQUET = re.compile(rb"PAR1\x15")
"""The mark, and the first field of the first page's header: a text may begin with the mark alone."""

_ARRAY = re.compile(rb"(\xef\xbb\xbf)?[ \t\r\n]*\[")
_HEAD_BYTES = 4096


def format_of(name: str) -> SourceFormat:
    """The format that a file's name says; what says none is text."""
    return _FORMATS.get(PurePosixPath(name).suffix.lower(), SourceFormat.TEXT)


def place_in(format: SourceFormat) -> str:
    """What the numbers of its rows count."""
    return "row" if format is SourceFormat.PARQUET else "piece" if format is SourceFormat.TEXT else "line"


def check_columns(columns: Mapping[str, str]) -> None:
    """Refuse a map from fields to columns that fits no kind of row.

    Raises:
        SourceColumns: it names a field that no row has, or fields that no row has together.
    """
    unknown = [field for field in columns if field not in fields_of_rows()]
    if unknown:
        raise SourceColumns(f"columns names {unknown[0][:40]!r}, which is none of {', '.join(fields_of_rows())}")
    if not fits_a_kind(columns):
        raise SourceColumns(f"columns names {' and '.join(columns)}, which no kind of row has together")


def read_rows(
    file: BinaryIO, format: SourceFormat, columns: Mapping[str, str] = NO_COLUMNS, *, name: str = "the file"
) -> Iterator[Row | BadRow]:
    """The rows of a file from its beginning, in constant memory; the file is left open.

    Args:
        file: Can seek.
        columns: Field → the name that it has in this file, such as {"text": "body"}.
        name: Of the file, for what is said of it.

    Raises:
        SourceColumns: no kind of row has these columns.
        SourceNotReadable: it is compressed, damaged or of another format, which shows at the beginning or later.
        SourceNotText: it is no UTF-8, with the byte offset.
    """
    check_columns(columns)
    size_bytes = file.seek(0, 2)
    _refuse_disguised(file, format, name)
    if format is SourceFormat.TEXT:
        return _pieces(file, name)
    if format is SourceFormat.JSONL:
        return _of_one_kind(json_rows(file, columns))
    if format is SourceFormat.CSV:
        return _of_one_kind(csv_rows(file, columns, name))
    return _of_one_kind(parquet_rows(file, columns, name, size_bytes))


def _refuse_disguised(file: BinaryIO, format: SourceFormat, name: str) -> None:
    """By its first bytes; leaves the file at its beginning."""
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    for mark, kind, undo in _COMPRESSED:
        if mark.match(head):
            said = f"is compressed ({kind}): unpack it first, for example with {undo}"
            raise SourceNotReadable(f"source '{name}' {said}")
    if format is SourceFormat.PARQUET:
        return
    if _PARQUET.match(head):
        raise SourceNotReadable(f"source '{name}' is a Parquet file: give it a name that ends in .parquet")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise SourceNotText(f"{_not_text(name, 0)}; it looks like UTF-16, so save it as UTF-8")
    if format is SourceFormat.JSONL and _ARRAY.match(head):
        said = (
            "is one JSON array: write one object per line instead (JSONL), without brackets around and commas between"
        )
        raise SourceNotReadable(f"source '{name}' {said}")


def _of_one_kind(found_there: Iterable[Numbered]) -> Iterator[Row | BadRow]:
    kind: RowKind | None = None
    for number, found in found_there:
        if isinstance(found, str):
            yield BadRow(number, found)
            continue
        kind = kind or found.kind
        if found.kind is kind:
            yield numbered(found, number)
        else:
            yield BadRow(number, f"is a {found.kind} row, and the rows before it are {kind} rows")


def _pieces(file: BinaryIO, name: str) -> Iterator[TextRow]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    consumed, mark = 0, "\ufeff"
    while True:
        chunk = file.read(PIECE_BYTES)
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            raise SourceNotText(_not_text(name, consumed - held + error.start)) from None
        if text:
            text, mark = text.removeprefix(mark), ""
        if text:
            yield TextRow(text)
        if not chunk:
            return
        consumed += len(chunk)


def _not_text(name: str, offset: int) -> str:
    return f"source '{name}' is not UTF-8 text: the byte at offset {offset} cannot be decoded"
