"""Sources as tokens: read, cut into examples, encoded by all cores, kept by what they are made of.

A file of tokens is named after the source's bytes, the columns, the tokenizer and the template, so that no run encodes
what another one has; what is small is encoded anew each time and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from core.bases.fingerprints import of_alphabet
from core.config import TrainingConfig
from core.errors import DiskFull, SourceEmpty, SourceNoRows
from core.events import Emit, Log
from core.machine import disk
from core.machine.disk import Meanwhile, nothing
from core.sources.corpus import Corpus, Part
from core.sources.row_json import Unfit
from core.sources.rows import BadRow, Row, RowKind, SourceFormat, TextRow, num_characters
from core.tokens.bpe import BytePairTokenizer
from core.tokens.conversations import END, PLAIN_END, Example, Render, by_template, examples_of, plainly
from core.tokens.token_files import Stored, TokenFile, TokenWriter, alone, forget, make_room, open_tokens
from core.tokens.tokenizer import CharacterTokenizer, PretrainedTokenizer, Tokenizer

FORMAT = 2
"""Of what is kept; another one would be encoded anew."""

CHARACTERS_AT_ONCE = 4 << 20
ROWS_AT_ONCE = 4096
CACHE_BYTES = 50 << 30
"""Of all files of tokens; those that were not used for longest give way."""

KEPT_FROM_BYTES = 4 << 20
"""Smaller sources are encoded in a blink."""

TOLD_SECONDS = 5.0
NUM_TOLD = 20
"""Bad rows that are remembered by number."""


@dataclass(slots=True)
class Encoder:
    """How rows become tokens.

    Args:
        tokenizer: The model's.
        learns_all: Prompts are learnt, too.
        cache: Where files of tokens are kept; None keeps none.
        emit: Told how far it is.
        meanwhile: Called again and again: a sign of life.
    """

    tokenizer: Tokenizer
    learns_all: bool = False
    cache: Path | None = None
    emit: Emit = lambda _: None
    meanwhile: Meanwhile = nothing
    _told_at: float = field(default_factory=time.monotonic)

    def tokens(self, part: Part) -> TokenFile:
        """The tokens of a source.

        Raises:
            SourceError: it cannot be read, or not one of its rows can be used.
        """
        if self.cache is None or _size_bytes(part) < KEPT_FROM_BYTES:
            with tempfile.TemporaryDirectory() as folder:
                # What is mapped stays readable when its name is gone.
                return self._written(part, Path(folder) / "tokens")
        path = self.cache / f"{self._key(part)}.tokens"
        with alone(path, self.meanwhile):
            try:
                found = open_tokens(path)
                # What was not used for longest is removed first.
                path.touch()
            except (OSError, ValueError, KeyError):
                # Not there, or damaged: either way it is made anew.
                path.unlink(missing_ok=True)
                found = self._written(part, path)
                make_room(self.cache, CACHE_BYTES, keep=path)
        return found

    def _written(self, part: Part, path: Path) -> TokenFile:
        try:
            writer = TokenWriter(path)
            return self._filled(part, writer, path)
        except OSError as error:
            if disk.refusal_of(error, part.source.name) is None:
                raise
            forget(path)
            raise DiskFull(
                f"the tokens of source '{part.source.name}' could not be written: {error.strerror}; make room where "
                f"'{path.parent.name}' is, then resume"
            ) from error

    def _filled(self, part: Part, writer: TokenWriter, path: Path) -> TokenFile:
        try:
            self._write(part, writer)
            if not writer.progress.num_examples:
                raise no_rows(part.source.name, [BadRow(*bad) for bad in writer.progress.bad_rows])
            writer.publish()
        finally:
            writer.close()
        return open_tokens(path)

    def _write(self, part: Part, writer: TokenWriter) -> None:
        rows = texts_as_lines(part)
        for number, _ in enumerate(islice(rows, writer.progress.num_rows)):
            if number % ROWS_AT_ONCE == 0:
                self.meanwhile()
        for some in _batches(rows):
            self._add(part, some, writer)
            writer.note()
            self.meanwhile()
            if time.monotonic() - self._told_at > TOLD_SECONDS:
                self._told_at = time.monotonic()
                self.emit(Log(f"🔤 Encoding {part.source.name}: {writer.progress.num_tokens:,} tokens so far"))

    def _add(self, part: Part, rows: list[Row | BadRow], writer: TokenWriter) -> None:
        """Encode some rows at once, by as many cores as the tokenizer knows to use."""
        pieces: list[str] = []
        of_rows: list[list[Example] | str] = []
        for row in rows:
            said = self._examples(part, row)
            of_rows.append(said)
            if not isinstance(said, str):
                pieces += [text for example in said for text, _ in example if text is not END]
        encoded = iter(encode_all(self.tokenizer, pieces))
        for row, found in zip(rows, of_rows, strict=True):
            told = found if isinstance(found, str) else self._keep(found, encoded, writer)
            writer.progress.num_rows += 1
            if told:
                writer.progress.num_bad_rows += 1
                if len(writer.progress.bad_rows) < NUM_TOLD:
                    number = row.number if isinstance(row, BadRow) else writer.progress.num_rows
                    writer.progress.bad_rows.append((number, told))

    def _examples(self, part: Part, row: Row | BadRow) -> list[Example] | str:
        """What a row teaches, or why it teaches nothing."""
        if isinstance(row, BadRow):
            return row.reason
        if part.format is SourceFormat.TEXT and isinstance(row, TextRow):
            return [[(row.text, True)]]
        try:
            found = examples_of(row, self.render, learns_all=self.learns_all)
        except Unfit as unfit:
            return str(unfit)
        end = END if self.tokenizer.eos_id is not None else PLAIN_END
        return [[(end if text is END else text, is_learnt) for text, is_learnt in pieces] for pieces in found]

    def _keep(self, examples: list[Example], encoded: Iterator[Stored], writer: TokenWriter) -> str | None:
        """Write a row's examples; or say why none of them teaches anything."""
        made = [self._stored(example, encoded) for example in examples]
        # The first token of an example follows nothing, so it is never learnt.
        if any(not (stored[1:] >= 0).any() for stored in made) and not self._is_text(examples):
            return "has nothing to learn once it is encoded"
        for stored in made:
            writer.add(stored)
        return None

    def _is_text(self, examples: list[Example]) -> bool:
        return all(is_learnt for example in examples for _, is_learnt in example)

    def _stored(self, example: Example, encoded: Iterator[Stored]) -> Stored:
        found = []
        for text, is_learnt in example:
            ids = np.array([self.tokenizer.eos_id], np.int32) if text is END else next(encoded)
            found.append(ids if is_learnt else ~ids)
        return np.concatenate(found) if found else np.zeros(0, np.int32)

    @property
    def render(self) -> Render:
        """How conversations are written."""
        return (
            by_template(self.tokenizer.tokenizer)
            if isinstance(self.tokenizer, PretrainedTokenizer) and (self.tokenizer.tokenizer.chat_template)
            else plainly
        )

    def _key(self, part: Part) -> str:
        columns = dict(sorted((part.columns or {}).items()))
        told = [FORMAT, part.source.sha256, part.format, columns, fingerprint(self.tokenizer), self.tokenizer.eos_id]
        return hashlib.sha256(json.dumps([*told, self.learns_all]).encode()).hexdigest()


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[Stored]:
    """The ids of each text."""
    if isinstance(tokenizer, PretrainedTokenizer) and texts:
        found = tokenizer.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [np.asarray(ids, np.int32) for ids in found]
    return [tokenizer.encode(text).astype(np.int32) for text in texts]


def fingerprint(tokenizer: Tokenizer) -> str:
    """SHA-256 of what decides which ids a row becomes, the template of conversations included."""
    if isinstance(tokenizer, CharacterTokenizer):
        return of_alphabet(tokenizer.characters)
    if isinstance(tokenizer, PretrainedTokenizer):
        library = tokenizer.tokenizer
        known = library.backend_tokenizer.to_str() if library.is_fast else repr(sorted(library.get_vocab().items()))
        return hashlib.sha256(f"{type(library)} {known} {library.chat_template}".encode()).hexdigest()
    assert isinstance(tokenizer, BytePairTokenizer)
    return tokenizer.fingerprint


def first_kind(part: Part) -> RowKind:
    """Of the first row that can be used.

    Raises:
        SourceNoRows: there is none.
        SourceEmpty: there is nothing but white space.
    """
    bad = []
    for row in part.rows():
        if isinstance(row, BadRow):
            bad.append(row)
        elif not isinstance(row, TextRow) or row.text.strip():
            return row.kind
    if bad:
        raise no_rows(part.source.name, bad)
    raise SourceEmpty(f"source '{part.source.name}' is empty: there is nothing to learn from")


def own_tokenizer(config: TrainingConfig, corpus: Corpus, meanwhile: Meanwhile = nothing) -> Tokenizer:
    """The tokens of a model from scratch, made from all that it will read."""
    texts = all_texts(corpus, plainly, meanwhile)
    if config.tokenizer == "bpe":
        return BytePairTokenizer.train(texts, config.bpe_vocab_size)
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    return CharacterTokenizer(sorted(characters))


def all_texts(corpus: Corpus, render: Render, meanwhile: Meanwhile = nothing) -> Iterator[str]:
    """Everything that will be encoded, for a tokenizer that has to see it first."""
    for part in corpus.parts:
        for row in texts_as_lines(part):
            meanwhile()
            if isinstance(row, BadRow):
                continue
            if isinstance(row, TextRow):
                yield row.text
                if part.format is not SourceFormat.TEXT:
                    yield PLAIN_END
                continue
            for example in examples_of(row, render):
                yield "".join(PLAIN_END if text is END else text for text, _ in example)


def texts_as_lines(part: Part) -> Iterator[Row | BadRow]:
    """A part's rows; a plain text's pieces are cut after a line, so that no word is cut in two."""
    if part.format is not SourceFormat.TEXT:
        yield from part.rows()
        return
    rest = ""
    for row in part.rows():
        assert isinstance(row, TextRow)
        text = rest + row.text
        rest = text
        # A single piece is the whole text.
        if len(text) >= CHARACTERS_AT_ONCE // 4 and (at := last_line(text)):
            yield TextRow(text[:at])
            rest = text[at:]
    if rest:
        yield TextRow(rest)


def last_line(text: str) -> int:
    """Where the last line begins that begins with a word: no token spans that. A text without lines is cut anywhere."""
    at = len(text)
    while (at := text.rfind("\n", 0, at)) >= 0:
        if at + 1 < len(text) and not text[at + 1].isspace():
            return at + 1
    return len(text) if len(text) >= CHARACTERS_AT_ONCE else 0


def no_rows(name: str, bad: list[BadRow]) -> SourceNoRows:
    """A source of which nothing is left."""
    first = "; ".join(f"row {row.number} {row.reason}" for row in bad[:3])
    return SourceNoRows(f"source '{name}' has no row that can be used: {first}", [(b.number, b.reason) for b in bad])


def _batches(rows: Iterable[Row | BadRow]) -> Iterator[list[Row | BadRow]]:
    some: list[Row | BadRow] = []
    size = 0
    for row in rows:
        some.append(row)
        size += 0 if isinstance(row, BadRow) else num_characters(row)
        if size >= CHARACTERS_AT_ONCE or len(some) == ROWS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _size_bytes(part: Part) -> int:
    unchanged = getattr(part.source, "unchanged", None)
    return int(unchanged[1]) if unchanged else 0
