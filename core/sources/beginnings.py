"""The beginning of each source of a run: enough to say what a run would see, whatever the size of the whole.

What a source has up to 8 MiB of is all of it, so what is said of it then is exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from core.hyperparameters.data import SourceShare
from core.sources.corpus import Corpus, Part, columns_of
from core.sources.facts import unchanged_key
from core.sources.files import SourceFile, SourceFolder
from core.sources.rows import BadRow, Row, format_of, num_characters

MOST_CHARACTERS = 8 << 20

BAD_ROW_CHARACTERS = 100
"""What a row that cannot be used counts, so that a file full of them ends, too."""


@dataclass(frozen=True, slots=True)
class Beginning(Part):
    """The first rows of a source.

    Args:
        num_characters: Of the whole source.
        most: Characters after which it ends, with the row that has them.
    """

    num_characters: int = 0
    most: int = MOST_CHARACTERS
    _read: list[int] = field(default_factory=list)

    def rows(self) -> Iterator[Row | BadRow]:
        """Rows from the first on."""
        num_read = spent = 0
        for row in Part.rows(self):
            yield row
            found = 0 if isinstance(row, BadRow) else num_characters(row)
            num_read += found
            spent += found or BAD_ROW_CHARACTERS
            if spent >= self.most:
                break
        self._read[:] = [num_read]

    @property
    def scale(self) -> float:
        """How many times as much the whole has as what was read; 1 if that was all of it."""
        read = self._read[0] if self._read else 0
        return max(1.0, self.num_characters / read) if read else 1.0


def beginnings(
    shares: Sequence[SourceShare],
    folder: SourceFolder,
    num_characters: Mapping[str, int],
    most: int = MOST_CHARACTERS,
    sha256: str = "",
) -> tuple[Beginning, ...]:
    """Of the sources that a configuration names.

    Args:
        num_characters: Name of each source → of all its rows that can be used.
        sha256: Of a source that is the only one, for those who look for what is kept of it.

    Raises:
        SourceError: one cannot be opened.
    """
    return tuple(
        Beginning(
            _opened(folder, share.source, sha256),
            share.weight,
            columns_of(share),
            num_characters=num_characters[share.source],
            most=most,
        )
        for share in shares
    )


def corpus_of(parts: Sequence[Beginning]) -> Corpus:
    """What the rest of core takes for a run's sources."""
    return Corpus(tuple(parts))


def _opened(folder: SourceFolder, name: str, sha256: str) -> SourceFile:
    """A source that need not be read to its end, as its hash is known or not asked for."""
    with folder.open(name) as file:
        return SourceFile(name, lambda: folder.open(name), format_of(name), sha256, unchanged_key(file))
