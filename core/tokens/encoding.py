"""Sources as tokens: read, cut into examples, encoded by all cores, kept by what they are made of.

A file of tokens is named after the source's bytes, the columns, the tokenizer and the template, so that no run encodes
what another one has; what is small is encoded anew each time and leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import json
import re
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
from core.sources.rows import (
    BadRow,
    ChatRow,
    PreferenceRow,
    Row,
    RowKind,
    SourceFormat,
    TextRow,
    num_characters,
    place_in,
)
from core.tokens.bpe import BytePairTokenizer
from core.tokens.conversations import END, PLAIN_END, Example, Render, by_template, examples_of, plainly
from core.tokens.pieces import Laid, Pieces
from core.tokens.token_files import TokenFile, TokenWriter, alone, forget, make_room, open_tokens
from core.tokens.tokenizer import CharacterTokenizer, PretrainedTokenizer, Tokenizer, beyond

FORMAT = 4
"""Of what is kept; another one would be encoded anew."""

CHARACTERS_AT_ONCE = 1 << 20
PIECES_AT_ONCE = 8
"""Of a text: each is encoded by a core of its own, if the tokenizer cannot do better."""

ROWS_AT_ONCE = 4096
CACHE_BYTES = 50 << 30
"""Of all files of tokens; those that were not used for longest give way."""

KEPT_FROM_BYTES = 4 << 20
"""Smaller sources are encoded in a blink."""

TOLD_SECONDS = 5.0
_LINE = re.compile(r"\n(?=\S)")

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

    def kept(self, part: Part) -> TokenFile | None:
        """The tokens of a source if they are kept; nothing is encoded."""
        if self.cache is None or _size_bytes(part) < KEPT_FROM_BYTES or not self.cache.is_dir():
            return None
        try:
            return open_tokens(self.cache / f"{self._key(part)}.tokens")
        except (OSError, ValueError, KeyError):
            return None

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
                raise no_rows(part, [BadRow(*bad) for bad in writer.progress.bad_rows])
            writer.publish()
        finally:
            writer.close()
        return open_tokens(path)

    def _write(self, part: Part, writer: TokenWriter) -> None:
        rows = texts_as_lines(part)
        for number, _ in enumerate(islice(rows, writer.progress.num_rows)):
            if number % ROWS_AT_ONCE == 0:
                self.meanwhile()
        for some in _batches(rows, CHARACTERS_AT_ONCE):
            self._add(part, some, writer)
            writer.note()
            self.meanwhile()
            if time.monotonic() - self._told_at > TOLD_SECONDS:
                self._told_at = time.monotonic()
                self.emit(Log(f"🔤 Encoding {part.source.name}: {writer.progress.num_tokens:,} tokens so far"))

    def _add(self, part: Part, rows: list[Row | BadRow], writer: TokenWriter) -> None:
        """Encode some rows at once and write them at once."""
        render = self.render
        reasons: dict[int, str] = {}
        examples: list[list[Example]] = []
        for index, row in enumerate(rows):
            found = self._examples(part, row, render)
            if isinstance(found, str):
                reasons[index] = found
            examples.append([] if isinstance(found, str) else found)
        laid = self._laid(examples, reasons)
        writer.add(laid.stored, laid.lengths)
        reasons |= dict.fromkeys(np.flatnonzero(laid.idle).tolist(), "has nothing to learn once it is encoded")
        progress = writer.progress
        for index in sorted(reasons)[: NUM_TOLD - len(progress.bad_rows)]:
            # A piece of a text has no number in its file.
            progress.bad_rows.append((rows[index].number or progress.num_rows + index + 1, reasons[index]))
        progress.num_bad_rows += len(reasons)
        progress.num_rows += len(rows)

    def _laid(self, examples: list[list[Example]], reasons: dict[int, str]) -> Laid:
        """The examples of each row as tokens, without those of rows that the model has no embeddings for."""
        pieces = Pieces(self.tokenizer.eos_id)
        ends = []
        for of_row in examples:
            pieces.add(of_row)
            ends.append(len(pieces.texts))
        encoded = self.tokenizer.encode_batch(pieces.texts)
        if not encoded.beyond:
            return pieces.laid(encoded)
        for index in np.searchsorted(ends, encoded.beyond, "right").tolist():
            reasons[index] = beyond(self.tokenizer.vocab_size)
            examples[index] = []
        return self._laid(examples, reasons)

    def _examples(self, part: Part, row: Row | BadRow, render: Render) -> list[Example] | str:
        """What a row teaches, or why it teaches nothing."""
        if isinstance(row, BadRow):
            return row.reason
        if part.format is SourceFormat.TEXT and isinstance(row, TextRow):
            return [[(row.text, True)]]
        try:
            found = examples_of(row, render, learns_all=self.learns_all)
        except Unfit as unfit:
            return str(unfit)
        # What a template writes begins as it says.
        return found if _is_templated(row) and render is not plainly else [self._begun(example) for example in found]

    def _begun(self, example: Example) -> Example:
        """With the token that the base expects before any text; it counts as a part of what it stands before."""
        match example:
            case [(str(text), is_learnt), *_]:
                return [*((token, is_learnt) for token in self.tokenizer.beginning(text)), *example]
        return example

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


def _is_templated(row: Row) -> bool:
    return isinstance(row, ChatRow) or (isinstance(row, PreferenceRow) and not isinstance(row.prompt, str))


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
        raise no_rows(part, bad)
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
                yield "".join(PLAIN_END if text is END else str(text) for text, _ in example)


def texts_as_lines(part: Part) -> Iterator[Row | BadRow]:
    """A part's rows; a plain text's pieces are cut after a line, so that no word is cut in two."""
    if part.format is not SourceFormat.TEXT:
        yield from part.rows()
        return
    rest = ""
    for row in part.rows():
        assert isinstance(row, TextRow)
        text, begin = rest + row.text, 0
        while end := piece_end(text, begin):
            yield TextRow(text[begin:end])
            begin = end
        rest = text[begin:]
    if rest:
        yield TextRow(rest)


def piece_end(text: str, begin: int) -> int:
    """Where the piece that begins there ends, 0 if that depends on what follows.

    The next line that begins with a word begins there: no token spans that. A text without lines is cut anywhere.
    """
    line = _LINE.search(text, begin + CHARACTERS_AT_ONCE // PIECES_AT_ONCE, begin + CHARACTERS_AT_ONCE)
    if line:
        return line.end()
    return begin + CHARACTERS_AT_ONCE if len(text) - begin > CHARACTERS_AT_ONCE else 0


def no_rows(part: Part, bad: list[BadRow]) -> SourceNoRows:
    """A source of which nothing is left."""
    first = "; ".join(f"{place_in(part.format)} {row.number} {row.reason}" for row in bad[:3])
    said = f"source '{part.source.name}' has no row that can be used: {first}"
    return SourceNoRows(said, [(row.number, row.reason) for row in bad])


def _batches(rows: Iterable[Row | BadRow], characters_at_once: int) -> Iterator[list[Row | BadRow]]:
    some: list[Row | BadRow] = []
    size = 0
    for row in rows:
        some.append(row)
        size += 0 if isinstance(row, BadRow) else num_characters(row)
        if size >= characters_at_once or len(some) == ROWS_AT_ONCE:
            yield some
            some, size = [], 0
    if some:
        yield some


def _size_bytes(part: Part) -> int:
    unchanged = getattr(part.source, "unchanged", None)
    return int(unchanged[1]) if unchanged else 0
