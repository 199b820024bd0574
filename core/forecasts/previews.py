"""The first training batch as the model would see it: which text is learnt, which is only read, and what is padding.

Shapes: T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from core.errors import ConfigError
from core.forecasts.preflight import MOST_PLACES, Prospect, is_padding
from core.losses import UNLEARNT
from core.tokens.batches import Batch, Pairs
from core.tokens.tokenizer import Tokenizer

MOST_ROWS = 8
MOST_TOKENS = 2048
"""Of a row that are shown."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an example; the first one follows nothing, so it is never learnt."""

    id: int
    is_learnt: bool


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens in a row that are of one example and alike; the texts of a row's pieces make its text."""

    text: str
    learnt: bool
    example: int


@dataclass(slots=True)
class Row:
    """One row of the batch. `answer` tells the two of a preference apart; `padding` is in tokens."""

    pieces: list[Piece] = field(default_factory=list)
    padding: int = 0
    answer: str | None = None
    is_cut: bool = False


def preview(prospect: Prospect) -> dict[str, Any]:
    """The first batch of a run, in pieces, and what there is of what in all of it.

    Raises:
        ConfigError: it is too large to be looked at.
    """
    if not prospect.num_viewable:
        said = f"a batch of more than {MOST_PLACES:,} tokens cannot be shown: give a smaller one"
        raise ConfigError([("batch_size", said)])
    batch = prospect.data.training(0)
    is_padding_BT = is_padding(batch)
    num_rows, num_places = is_padding_BT.shape
    num_padding = int(is_padding_BT.sum())
    shown = _order(num_rows, isinstance(prospect.data, Pairs))[:MOST_ROWS]
    return {
        "method": prospect.method,
        "num_rows": num_rows,
        "row_length": num_places,
        "num_tokens": num_rows * num_places - num_padding,
        "num_learnt": batch.num_targets,
        "num_padding": num_padding,
        "is_estimate": prospect.is_estimate,
        "rows": [
            asdict(_row(batch, number, int(is_padding_BT[number].sum()), answer, prospect.tokenizer))
            for number, answer in shown
        ],
        "warnings": list(prospect.data.warnings),
    }


def _order(num_rows: int, are_pairs: bool) -> list[tuple[int, str | None]]:
    """Rows as a person wants to see them: of pairs, both answers one after the other."""
    if not are_pairs:
        return [(number, None) for number in range(num_rows)]
    half = num_rows // 2
    return [(number + side * half, ("better", "worse")[side]) for number in range(half) for side in (0, 1)]


def _examples_in(batch: Batch, number: int, end: int) -> list[list[Token]]:
    """The examples of a row, which has so many places before its padding, as far as the model sees them."""
    ids_T, targets_T = batch.ids_BT[number, :end], batch.targets_BT[number, :end]
    if batch.segments_BT is None:
        return [_tokens(ids_T, targets_T)]
    ends = [*(torch.nonzero(batch.segments_BT[number, :end].diff()).flatten() + 1).tolist(), end]
    return [_tokens(ids_T[a:b], targets_T[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def _tokens(ids_T: Tensor, targets_T: Tensor) -> list[Token]:
    """Every token but the first is the target of the one before it."""
    ids, targets = ids_T.tolist(), targets_T.tolist()
    learnt = [False, *(target != UNLEARNT for target in targets)]
    tokens = [Token(id_, is_learnt) for id_, is_learnt in zip(ids, learnt, strict=False)]
    # The last one goes into no model; where it is not even learnt, nobody sees it.
    return [*tokens, Token(targets[-1], True)] if learnt[-1] else tokens


def _row(batch: Batch, number: int, padding: int, answer: str | None, tokenizer: Tokenizer) -> Row:
    row = Row(padding=padding, answer=answer)
    left = MOST_TOKENS
    for example, tokens in enumerate(_examples_in(batch, number, batch.ids_BT.shape[1] - padding)):
        row.pieces += _pieces(tokens[:left], example, tokenizer)
        row.is_cut = row.is_cut or len(tokens) > left
        left = max(0, left - len(tokens))
    return row


def _pieces(tokens: Sequence[Token], example: int, tokenizer: Tokenizer) -> Iterator[Piece]:
    """A token may be half a character, so pieces are cut out of the text of all."""
    whole = tokenizer.decode([token.id for token in tokens])
    seen: list[int] = []
    begin = 0
    for is_learnt, alike in groupby(tokens, key=lambda token: token.is_learnt):
        seen += [token.id for token in alike]
        end = len(whole) if len(seen) == len(tokens) else max(begin, _shared(tokenizer.decode(seen), whole))
        if end > begin:
            yield Piece(whole[begin:end], is_learnt, example)
        begin = end


def _shared(one: str, other: str) -> int:
    """Characters with which both begin."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
