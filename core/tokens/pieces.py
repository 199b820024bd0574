"""The pieces of many rows: gathered, encoded at once, and put together again as examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.tokens.conversations import END, PLAIN_END, Example
from core.tokens.token_files import Stored
from core.tokens.tokenizer import Encoded

Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]


_TEXT = -1
"""Stands for a piece whose tokens are those of a text."""


class Laid(NamedTuple):
    """Examples of rows, one after the other.

    Args:
        stored: As `core.tokens.token_files` keeps them, shape (num_tokens,).
        lengths: Of each example, shape (num_examples,).
        idle: Which rows have an example in which nothing is learnt, shape (num_rows,); nothing of them is among these.
    """

    stored: Stored
    lengths: Counts
    idle: Flags


class Pieces:
    """What some rows teach.

    Args:
        eos_id: The token that ends an example; None if a text does.
    """

    def __init__(self, eos_id: int | None) -> None:
        self.texts: list[str] = []
        self._eos_id = eos_id
        self._given: list[int] = []
        self._is_learnt: list[bool] = []
        self._num_pieces: list[int] = []
        self._num_examples: list[int] = []

    def add(self, examples: Sequence[Example]) -> None:
        """One more row, which may have none."""
        self._num_examples.append(len(examples))
        for example in examples:
            self._num_pieces.append(len(example))
            for piece, is_learnt in example:
                said = piece if piece is not END else PLAIN_END if self._eos_id is None else self._eos_id
                if isinstance(said, str):
                    self.texts.append(said)
                self._given.append(_TEXT if isinstance(said, str) else said)
                self._is_learnt.append(is_learnt)

    def laid(self, encoded: Encoded) -> Laid:
        """The rows as tokens. Shapes: P pieces, E examples, R rows; of where they begin, one more.

        Args:
            encoded: Of `texts`.
        """
        given_P, is_learnt = np.array(self._given, np.int32), np.array(self._is_learnt, bool)
        lengths_P = np.ones(len(given_P), np.int64)
        lengths_P[given_P == _TEXT] = np.diff(encoded.starts)
        begins_P = _begins(lengths_P)
        ids = np.repeat(given_P, lengths_P)
        ids[ids == _TEXT] = encoded.ids
        # x ^ -1 is ~x: a token that is only read.
        stored = ids ^ np.repeat(np.where(is_learnt, np.int32(0), np.int32(-1)), lengths_P)
        pieces_E, rows_E = _begins(self._num_pieces), _begins(self._num_examples)
        begins_E = begins_P[pieces_E]
        # The first token of an example follows nothing, so it is never learnt; it is of the first piece that has any.
        first_E = np.searchsorted(begins_P, begins_E[:-1], "right") - 1
        is_first_learnt = np.append(is_learnt, False)[first_E]
        idle_E = _sums(lengths_P * is_learnt, pieces_E) - is_first_learnt <= 0
        # A text is not expected to teach anything: the next one goes on from it.
        is_prompted_E = _sums(~is_learnt, pieces_E) > 0
        idle_R = (_sums(idle_E, rows_E) > 0) & (_sums(is_prompted_E, rows_E) > 0)
        lengths_E = np.diff(begins_E)
        if idle_R.any():
            kept_E = ~np.repeat(idle_R, self._num_examples)
            stored, lengths_E = stored[np.repeat(kept_E, lengths_E)], lengths_E[kept_E]
        return Laid(stored, lengths_E, idle_R)


def _begins(lengths: Any) -> Counts:
    """Where each of several begins, and where the last one ends."""
    begins = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=begins[1:])
    return begins


def _sums(counts: Any, begins: Counts) -> Counts:
    """Of each stretch, from where it begins to where the next one does."""
    return np.diff(_begins(counts)[begins])
