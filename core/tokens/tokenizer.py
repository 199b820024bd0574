"""Text to token ids and back: characters or byte pairs for models from scratch, a base model's own for the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from core.errors import CheckpointCorrupt, GenerationError
from core.machine.outside import read_plain

CHARACTERS_FILE = "characters.json"
BPE_FILE = "tokenizer.json"
MAX_CHARACTERS_BYTES = 32 << 20
"""All of Unicode, as JSON in ASCII."""

CHARACTERS_PER_CALL = 1 << 18
"""Given to a library at once, for each core: what it says of a text takes a hundred times what its ids do."""

_ANY = "a"

TokenIds = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """Several texts, one after the other.

    Args:
        ids: Shape (num_tokens,).
        starts: Where each text begins, and where the last one ends, shape (num_texts + 1,).
        beyond: Which texts have ids that the model has no embedding for, in order.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    beyond: Sequence[int] = ()


class Tokenizer(Protocol):
    """What data preparation, checkpoints and generation need of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        ...

    @property
    def eos_id(self) -> int | None:
        """The token that ends an example, or None: a text of characters has none."""
        ...

    def beginning(self, text: str) -> list[int]:
        """The tokens that a text by itself begins with: one, or none, as the model was trained."""
        ...

    def encode(self, text: str) -> TokenIds:
        """Token ids, shape (T,), without any before or after."""
        ...

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The same of many texts at once, which is many times as fast."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids, shape (T,)."""
        ...

    def save(self, folder: Path) -> None:
        """Write the files that a checkpoint keeps of it."""
        ...


class CharacterTokenizer:
    """One token for each distinct character, in order of code point.

    Args:
        characters: The alphabet; position is id.
    """

    eos_id: int | None = None

    def __init__(self, characters: list[str]) -> None:
        self.characters = characters
        code_points = np.array([ord(character) for character in characters], dtype=np.uint32)
        # By code point: looking up in a table is twenty times as fast as searching, and takes 4 MiB at most.
        self._table = np.full(int(code_points.max(initial=0)) + 2, -1, dtype=np.int32)
        # Of one that is listed twice, the first counts.
        self._table[code_points[::-1]] = np.arange(len(characters))[::-1]

    @classmethod
    def of_text(cls, text: str) -> CharacterTokenizer:
        """The tokenizer whose alphabet is exactly the text's."""
        return cls(sorted(set(text)))

    @property
    def vocab_size(self) -> int:
        """Number of characters in the alphabet."""
        return len(self.characters)

    def beginning(self, text: str) -> list[int]:
        """None."""
        return []

    def encode(self, text: str) -> TokenIds:
        """Ids of the characters, shape (len(text),).

        Raises:
            GenerationError: the text has characters that the alphabet lacks; the message shows them.
        """
        return self._looked_up(text).astype(np.int64)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The same of many texts.

        Raises:
            GenerationError: as for `encode`, of all of them.
        """
        starts = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)), out=starts[1:])
        return Encoded(self._looked_up("".join(texts)), starts)

    def _looked_up(self, text: str) -> NDArray[np.int32]:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        # What is beyond the table is as unknown as its last entry.
        ids: NDArray[np.int32] = self._table.take(code_points, mode="clip")
        if ids.min(initial=0) < 0:
            missing = sorted({chr(int(point)) for point in code_points[ids < 0]})
            shown = " ".join(repr(character) for character in missing[:10])
            raise GenerationError(f"the model has never seen {len(missing)} of the text's characters: {shown}")
        return ids

    def decode(self, ids: Any) -> str:
        """The characters of ids, joined."""
        return "".join(self.characters[int(i)] for i in ids)

    def save(self, folder: Path) -> None:
        """Write `characters.json`."""
        text = json.dumps({"type": "characters", "characters": self.characters}, ensure_ascii=True)
        (folder / CHARACTERS_FILE).write_text(text)


class PretrainedTokenizer:
    """A Hugging Face tokenizer behind the same methods.

    Args:
        tokenizer: What `AutoTokenizer.from_pretrained` gave.
        vocab_size: Rows of the model's embedding, which may be more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: Any, vocab_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size

    @property
    def eos_id(self) -> int | None:
        """What the base was trained to end with; None if it does not say, or has no row for it."""
        said = self.tokenizer.eos_token_id
        return int(said) if isinstance(said, int) and 0 <= said < self.vocab_size else None

    @cached_property
    def bos_id(self) -> int | None:
        """What its library puts before each text; None if that is nothing, or has no row in the model's embedding."""
        said = self.tokenizer.bos_token_id
        whole = self.tokenizer(_ANY, add_special_tokens=True)["input_ids"]
        bare = self.tokenizer(_ANY, add_special_tokens=False)["input_ids"]
        is_written = whole[: len(bare)] != bare and whole[:1] == [said]
        return int(said) if is_written and 0 <= said < self.vocab_size else None

    def beginning(self, text: str) -> list[int]:
        """The token before each text, unless the text has it written out."""
        return [] if self.bos_id is None or text.startswith(self.tokenizer.bos_token) else [self.bos_id]

    def encode(self, text: str) -> TokenIds:
        """Ids without special tokens, shape (T,).

        Raises:
            GenerationError: the text has half a character in it, which is in no UTF-8, or a token that the tokenizer
                has and the model has not.
        """
        check_whole(text)
        # verbose=False: a whole source is longer than the model's window on purpose.
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        found = np.asarray(ids, dtype=np.int64)
        if found.max(initial=-1) >= self.vocab_size:
            said = f"the text {beyond(self.vocab_size)}"
            token = self.tokenizer.convert_ids_to_tokens(int(found[found >= self.vocab_size][0]))
            raise GenerationError(f"{said}: the first is {str(token)[:40]!r}")
        return found

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The same of many texts, by all cores; those with tokens that the model has not are told, not refused.

        Raises:
            GenerationError: a text has half a character in it.
        """
        for text in texts:
            check_whole(text)
        found = encoded_of(self._ids_of_each(texts))
        places = np.flatnonzero(found.ids >= self.vocab_size)
        if not len(places):
            return found
        return replace(found, beyond=np.unique(np.searchsorted(found.starts, places, "right") - 1).tolist())

    @property
    def _is_plainly_fast(self) -> bool:
        """Whether its library's tokenizer alone decides what a text becomes, and no code of its class's own."""
        from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

        kind = type(self.tokenizer)
        return (
            isinstance(self.tokenizer, PreTrainedTokenizerFast)
            and kind.__call__ is PreTrainedTokenizerBase.__call__
            and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
        )

    def _ids_of_each(self, texts: Sequence[str]) -> Iterator[Sequence[int]]:
        if not self._is_plainly_fast:
            for some in some_at_once(texts):
                yield from self.tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
            return
        # Its class sets the library's tokenizer as this call says, which is all that it does to it.
        self.tokenizer("", add_special_tokens=False, verbose=False)
        for some in some_at_once(texts):
            encodings = self.tokenizer.backend_tokenizer.encode_batch_fast(some, add_special_tokens=False)
            yield from (encoding.ids for encoding in encodings)

    def decode(self, ids: Any) -> str:
        """The text, exactly as the tokens spell it."""
        return str(self.tokenizer.decode([int(i) for i in ids], clean_up_tokenization_spaces=False))

    def save(self, folder: Path) -> None:
        """Write the tokenizer's own files."""
        # Several templates for conversations would be put into a folder of their own; a checkpoint has none.
        has_several = isinstance(self.tokenizer.chat_template, dict)
        self.tokenizer.save_pretrained(folder, save_jinja_files=not has_several)


def load_characters(folder: Path) -> CharacterTokenizer:
    """The tokenizer that a from-scratch checkpoint keeps.

    Raises:
        CheckpointCorrupt: the file does not hold an alphabet.
    """
    try:
        characters = json.loads(read_plain(folder / CHARACTERS_FILE, MAX_CHARACTERS_BYTES))["characters"]
        return CharacterTokenizer([str(character) for character in characters])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointCorrupt(f"'{folder.name}/{CHARACTERS_FILE}' cannot be read: {error}") from None


def load_own_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a from-scratch checkpoint keeps, of whichever kind it is.

    Raises:
        CheckpointCorrupt, CheckpointUnsafe, StorageError: said in one sentence.
    """
    if (folder / CHARACTERS_FILE).exists() or not (folder / BPE_FILE).exists():
        return load_characters(folder)
    from core.tokens.bpe import load_bpe

    return load_bpe(folder)


def beyond(vocab_size: int) -> str:
    """What is wrong with a text, to be read after what it is."""
    return f"has tokens that its tokenizer knows and the model does not, which has {vocab_size} embeddings"


def some_at_once(texts: Sequence[str]) -> Iterator[list[str]]:
    """The texts in their order, as many at a time as the library takes without taking much memory."""
    most = CHARACTERS_PER_CALL * (os.cpu_count() or 1)
    some: list[str] = []
    size = 0
    for text in texts:
        if some and size + len(text) > most:
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    if some:
        yield some


def encoded_of(ids_of_each: Iterable[Sequence[int]]) -> Encoded:
    """Lists of ids, put one after the other."""
    found = [np.array(ids, np.int32) for ids in ids_of_each]
    starts = np.zeros(len(found) + 1, np.int64)
    np.cumsum([len(ids) for ids in found], out=starts[1:])
    return Encoded(np.concatenate(found) if found else np.zeros(0, np.int32), starts)


def check_whole(text: str) -> str:
    """The text itself.

    Raises:
        GenerationError: JSON can say one half of a character that UTF-16 writes as two; no tokenizer knows it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise GenerationError(f"the text has half a character at place {error.start}, which is in no UTF-8") from None
    return text
