"""Training data on disk: named under one root, opened safely, checked before anything trains.

Light: the service uses it at submit, the trainer when it reads. Below the root no symbolic link is followed, whatever
it points at, see `places`. What is in a source: `rows`; what is known of it: `facts`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from core.errors import SourceAltered, SourceEmpty, SourceNotText, SourceTooShort
from core.sources.facts import READ_BYTES as CHUNK_BYTES
from core.sources.facts import FactsMemory, sha256_of, unchanged_key
from core.sources.facts import SourceFacts as SourceFacts
from core.sources.places import files_below, open_anywhere, open_below
from core.sources.quarantine import facts_apart
from core.sources.rows import NO_COLUMNS, BadRow, Row, SourceFormat, check_columns, format_of, read_rows

__all__ = [
    "CHUNK_BYTES",
    "SourceFacts",
    "SourceFile",
    "SourceFolder",
    "SourceText",
    "check_length",
    "load_raw_text",
    "read_source",
    "source_file",
]

_MEMORY = FactsMemory(facts_apart)
"""Of this process. It holds only what can be found again."""


@dataclass(frozen=True, slots=True)
class SourceText:
    """A text that has been read: its name for people, its characters, and the hash of its bytes."""

    name: str
    text: str
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A source whose rows can be read any number of times.

    Args:
        name: For people.
        opener: Opens it from its beginning.
        format: As its name says.
        sha256: Of its bytes.
        unchanged: What `core.sources.facts.unchanged_key` said when they were hashed.
    """

    name: str
    opener: Callable[[], BinaryIO]
    format: SourceFormat
    sha256: str
    unchanged: tuple[int, int, int]

    def rows(self, columns: Mapping[str, str] = NO_COLUMNS) -> Iterator[Row | BadRow]:
        """Its rows, in constant memory; see `core.sources.rows.read_rows`.

        Raises:
            SourceAltered: it is not the file any more that was hashed.
            SourceError: it is gone, or cannot be read.
        """
        with self.opener() as file:
            self._check(file)
            yield from read_rows(file, self.format, columns, name=self.name)
            self._check(file)

    def _check(self, file: BinaryIO) -> None:
        if unchanged_key(file) != self.unchanged:
            raise SourceAltered(f"source '{self.name}' changed while it was read: begin again with what it is now")


class SourceFolder:
    """The sources under one root, by relative name.

    Args:
        root: The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Relative names of the regular files below the root, sorted; hidden ones and links are left out."""
        above = len(str(self.root).rstrip("/")) + 1
        return sorted(entry.path[above:] for entry in files_below(self.root))

    def open(self, name: str) -> BinaryIO:
        """The source's bytes.

        Raises:
            SourceForbidden: the name leads out of the root, through a link, or to something not a regular file.
            SourceNotFound: nothing of that name.
        """
        return open_below(self.root, name)

    def inspect(self, name: str, columns: Mapping[str, str] = NO_COLUMNS) -> SourceFacts:
        """What is in a source, remembered for as long as the file does not change.

        Raises:
            SourceNotText: with the byte offset.
            SourceEmpty: nothing but white space.
            SourceNoRows: not one row can be used; says why of the first three.
            SourceError: it is not there, cannot be read, or changed while it was.
        """
        with self.open(name) as file:
            return self.inspect_open(name, file, columns)

    def inspect_open(self, name: str, file: BinaryIO, columns: Mapping[str, str] = NO_COLUMNS) -> SourceFacts:
        """The same of a file that is open already, and has that name or is about to get it."""
        check_columns(columns)
        return _MEMORY.facts(self.root, name, file, columns)

    def glance(self, name: str, at_most_bytes: int, columns: Mapping[str, str] = NO_COLUMNS) -> SourceFacts | int:
        """The same, or only the size if facts are not known and the file is larger than may be read for them."""
        check_columns(columns)
        with self.open(name) as file:
            _, size_bytes, _ = unchanged_key(file)
            known = _MEMORY.known(self.root, name, file, columns)
            if known is None and size_bytes <= at_most_bytes:
                known = _MEMORY.facts(self.root, name, file, columns)
        return size_bytes if known is None else known

    def read(self, name: str) -> SourceText:
        """The whole text."""
        with self.open(name) as file:
            return _decode(name, file.read())

    def file(self, name: str) -> SourceFile:
        """The source for those who read its rows; its bytes are hashed now.

        Raises:
            SourceForbidden, SourceNotFound: as for `open`.
        """
        return _hashed(name, lambda: self.open(name))


def source_file(path: str | Path) -> SourceFile:
    """A source anywhere on this machine, for a run from the command line.

    Raises:
        SourceForbidden, SourceNotFound: it cannot be opened.
    """
    return _hashed(str(path), lambda: open_anywhere(Path(path)))


def load_raw_text(data_source: str | Path) -> str:
    """The text of a file anywhere on this machine, for a run from the command line.

    Raises:
        SourceNotFound, SourceForbidden, SourceNotText, SourceEmpty: said in one sentence.
    """
    return read_source(data_source).text


def read_source(data_source: str | Path) -> SourceText:
    """As `load_raw_text`, with the hash that a checkpoint keeps."""
    path = Path(data_source)
    with open_anywhere(path) as file:
        return _decode(str(path), file.read())


def check_length(num_tokens: int, block_size: int, what: str = "tokens") -> None:
    """Refuse a text that has not even one block and the token that follows it.

    Raises:
        SourceTooShort: with both numbers.
    """
    if num_tokens < block_size + 1:
        raise SourceTooShort(
            f"the source has {num_tokens} {what}, but block_size {block_size} needs at least {block_size + 1}: "
            "give a longer text or a smaller block_size"
        )


def _hashed(name: str, opener: Callable[[], BinaryIO]) -> SourceFile:
    with opener() as file:
        # What is written meanwhile shows when the rows are read.
        unchanged = unchanged_key(file)
        return SourceFile(name, opener, format_of(name), sha256_of(file), unchanged)


def _decode(name: str, raw: bytes) -> SourceText:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        said = f"source '{name}' is not UTF-8 text: the byte at offset {error.start} cannot be decoded"
        raise SourceNotText(said) from None
    if not text.strip():
        raise SourceEmpty(f"source '{name}' is empty: there is nothing to learn from")
    return SourceText(name, text, hashlib.sha256(raw).hexdigest())
