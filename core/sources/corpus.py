"""All that one run learns from: a source, or several with weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from core.hyperparameters.data import SourceShare
from core.sources.files import SourceFile, SourceText
from core.sources.rows import BadRow, Row, SourceFormat, TextRow


@dataclass(frozen=True, slots=True)
class Part:
    """One source, and how much of it."""

    source: SourceFile | SourceText
    weight: float = 1.0
    columns: Mapping[str, str] | None = None

    @property
    def format(self) -> SourceFormat:
        """What its name says."""
        return self.source.format if isinstance(self.source, SourceFile) else SourceFormat.TEXT

    def rows(self) -> Iterator[Row | BadRow]:
        """Its rows, from the first on.

        Raises:
            SourceError: it cannot be read, or is another than it was.
        """
        if isinstance(self.source, SourceText):
            yield TextRow(self.source.text)
        else:
            yield from self.source.rows(self.columns or {})


@dataclass(frozen=True, slots=True)
class Corpus:
    """The sources of a run, in the order of its configuration."""

    parts: tuple[Part, ...]

    @classmethod
    def of(cls, shares: Sequence[SourceShare], opened: Callable[[str], SourceFile]) -> Corpus:
        """The sources that a configuration names.

        Raises:
            SourceError: one cannot be opened.
        """
        return cls(tuple(Part(opened(share.source), share.weight, columns_of(share)) for share in shares))

    @classmethod
    def of_one(cls, source: SourceFile | SourceText) -> Corpus:
        """A source by itself."""
        return cls((Part(source),))

    @property
    def name(self) -> str:
        """The first one's."""
        return self.parts[0].source.name

    @property
    def sha256(self) -> str:
        """What it has in it, to the last byte."""
        return sha256_of_all([part.source.sha256 for part in self.parts])


def columns_of(share: SourceShare) -> dict[str, str]:
    """What the parts of its rows are called in it."""
    return {str(role): name for role, name in share.columns.items()}


def sha256_of_all(hashes: Sequence[str]) -> str:
    """Of several sources; that of a single one is its own."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("\n".join(hashes).encode()).hexdigest()
