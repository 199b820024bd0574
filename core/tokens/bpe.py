"""Byte-level byte pairs, for models from scratch: a token for what a source has often, and a byte for all else.

Every text can be encoded, and comes back to the letter. One special token, `<|endoftext|>`, ends an example; a text
that has it in it is a text like any other, so only who asks for `eos_id` gets it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from core.errors import CheckpointCorrupt
from core.machine.outside import read_plain
from core.tokens.tokenizer import BPE_FILE, Encoded, TokenIds, check_whole, encoded_of, some_at_once

MAX_BPE_BYTES = 128 << 20
"""A million tokens, each with the merge that makes it, take half of it."""

MAX_TOKENS = 1_000_000

END_OF_TEXT = "<|endoftext|>"

MIN_FREQUENCY = 2
"""What is there once is no pattern."""

_PIECE_CHARS = 1 << 16
_PIECES_AT_ONCE = 64

_CUT = re.compile(r"(?<=\S)(?=[ \n])")
"""No token has a space, or the end of a line, after anything else: a text cut there has the tokens of the whole."""


class BytePairTokenizer:
    """Pairs of bytes, and of such pairs, that a source has often.

    Args:
        tokenizer: As `train` or `load_bpe` made it.
    """

    eos_id: int = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BytePairTokenizer:
        """Learn from texts, which are read once and not kept; the same ones give the same tokenizer to the byte.

        Args:
            vocab_size: Most tokens there may be: 256 bytes, the special one, and the pairs. A short text has fewer.
        """
        tokenizer = _ready(Tokenizer(models.BPE()))
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_FREQUENCY,
            special_tokens=[END_OF_TEXT],
            # In order, or ids would depend on the process.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator((check_whole(text) for text in texts), trainer)
        return cls(tokenizer)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what decides which ids a text becomes."""
        return hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest()

    def beginning(self, text: str) -> list[int]:
        """None."""
        return []

    def encode(self, text: str) -> TokenIds:
        """Ids, shape (T,). A long text is encoded by all cores.

        Raises:
            GenerationError: the text has half a character in it, which is in no UTF-8.
        """
        pieces = _pieces(check_whole(text))
        found = [np.empty(0, dtype=np.int64)]
        while some := list(islice(pieces, _PIECES_AT_ONCE)):
            found += [np.asarray(ids, dtype=np.int64) for ids in self._ids_of_each(some)]
        return np.concatenate(found)

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The same of many texts, by all cores.

        Raises:
            GenerationError: as for `encode`.
        """
        pieces: list[str] = []
        num_pieces = [0]
        for text in texts:
            pieces += _pieces(check_whole(text))
            num_pieces.append(len(pieces))
        found = encoded_of(self._ids_of_each(pieces))
        return Encoded(found.ids, found.starts[num_pieces])

    def _ids_of_each(self, texts: list[str]) -> Iterator[Sequence[int]]:
        for some in some_at_once(texts):
            yield from (e.ids for e in self._tokenizer.encode_batch_fast(some, add_special_tokens=False))

    def decode(self, ids: Any) -> str:
        """The text of ids; bytes that are no whole character become U+FFFD."""
        return str(self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False))

    def save(self, folder: Path) -> None:
        """Write `tokenizer.json`, which Hugging Face's libraries read."""
        (folder / BPE_FILE).write_text(self._tokenizer.to_str(), encoding="utf-8")


def load_bpe(folder: Path) -> BytePairTokenizer:
    """The tokenizer that a from-scratch checkpoint keeps.

    Only its tokens and merges are taken: a file from elsewhere may ask for expressions that take forever.

    Raises:
        CheckpointCorrupt: the file holds no byte pairs.
        CheckpointUnsafe: it is no regular file, or larger than any that is needed.
    """
    content = read_plain(folder / BPE_FILE, MAX_BPE_BYTES)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:  # The library raises no class of its own.
        raise _corrupt(folder, str(error)) from None
    if not isinstance(tokenizer.model, models.BPE):
        raise _corrupt(folder, "it holds no byte pairs")
    _check_tokens(folder, tokenizer.get_vocab())
    return BytePairTokenizer(_ready(tokenizer))


def _ready(tokenizer: Tokenizer) -> Tokenizer:
    """Put everything but the tokens and merges as we have it."""
    pairs = tokenizer.model
    pairs.dropout = pairs.unk_token = None
    pairs.fuse_unk = pairs.byte_fallback = pairs.ignore_merges = False
    tokenizer.normalizer = tokenizer.post_processor = None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # Each digit is a token: a small vocabulary would cut 1024 and 1025 in different places, and hide what they share.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_tokens(folder: Path, ids: dict[str, int]) -> None:
    if len(ids) > MAX_TOKENS or set(ids.values()) != set(range(len(ids))):
        raise _corrupt(folder, "its ids do not count from 0 on, or are too many")
    if ids.get(END_OF_TEXT) != 0:
        raise _corrupt(folder, f"its first token is not {END_OF_TEXT}")
    if not ids.keys() >= set(pre_tokenizers.ByteLevel.alphabet()):
        raise _corrupt(folder, "it has not all bytes")


def _corrupt(folder: Path, why: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"'{folder.name}/{BPE_FILE}' cannot be read: {why[:200]}")


def _pieces(text: str) -> Iterator[str]:
    """Parts that join to the text and can be encoded apart."""
    begin = 0
    while begin < len(text):
        cut = _CUT.search(text, begin + _PIECE_CHARS)
        end = cut.start() if cut else len(text)
        yield text[begin:end]
        begin = end
