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

from core.batches import Batch, Pairs
from core.losses import UNLEARNT
from core.preflight import Prospect
from core.tokenizer import Tokenizer

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
    """The first batch of a run, in pieces, and what there is of what in all of it."""
    batch = prospect.data.training(0)
    num_rows, num_places = batch.ids_BT.shape
    examples = [_examples_in(batch, number) for number in range(num_rows)]
    # Every token but the first of an example is the target of the one before it.
    num_filled = sum(_num_places(tokens) for row in examples for tokens in row)
    shown = _order(num_rows, isinstance(prospect.data, Pairs))[:MOST_ROWS]
    return {
        "method": prospect.method,
        "num_rows": num_rows,
        "block_size": num_places,
        "num_tokens": num_filled,
        "num_learnt": batch.num_targets,
        "num_padding": num_rows * num_places - num_filled,
        "is_estimate": prospect.is_estimate,
        "rows": [
            asdict(_row(examples[number], num_places, answer, prospect.tokenizer)) for number, answer in shown
        ],
        "warnings": list(prospect.data.warnings),
    }


def _order(num_rows: int, are_pairs: bool) -> list[tuple[int, str | None]]:
    """Rows as a person wants to see them: of pairs, both answers one after the other."""
    if not are_pairs:
        return [(number, None) for number in range(num_rows)]
    half = num_rows // 2
    return [(number + side * half, ("better", "worse")[side]) for number in range(half) for side in (0, 1)]


def _examples_in(batch: Batch, number: int) -> list[list[Token]]:
    """The examples of a row, as far as the model sees them; what only fills the row is none."""
    ids_T, targets_T = batch.ids_BT[number], batch.targets_BT[number]
    if batch.segments_BT is None:
        end = _end(ids_T, targets_T)
        return [_tokens(ids_T[:end], targets_T[:end])]
    segments_T = batch.segments_BT[number]
    ends = [*(torch.nonzero(segments_T.diff()).flatten() + 1).tolist(), len(ids_T)]
    found = []
    for begin, end in zip([0, *ends[:-1]], ends, strict=True):
        if bool((targets_T[begin:end] != UNLEARNT).any()):
            found.append(_tokens(ids_T[begin:end], targets_T[begin:end]))
    return found


def _end(ids_T: Tensor, targets_T: Tensor) -> int:
    """Where the padding of a row begins: it is all zeros of which nothing is learnt."""
    filled = torch.nonzero((ids_T != 0) | (targets_T != UNLEARNT)).flatten()
    return int(filled[-1]) + 1 if len(filled) else 0


def _tokens(ids_T: Tensor, targets_T: Tensor) -> list[Token]:
    ids, targets = ids_T.tolist(), targets_T.tolist()
    tokens = [Token(id_, learnt) for id_, learnt in zip(ids, [False, *(t != UNLEARNT for t in targets)], strict=False)]
    # The last one goes into no model: it is there as a target, or not at all.
    return [*tokens, Token(targets[-1], True)] if targets and targets[-1] != UNLEARNT else tokens


def _num_places(tokens: Sequence[Token]) -> int:
    """How much of a row an example takes."""
    return len(tokens) - 1 if tokens and _has_own_target(tokens) else len(tokens)


def _has_own_target(tokens: Sequence[Token]) -> bool:
    return tokens[-1].is_learnt


def _row(examples: Sequence[Sequence[Token]], num_places: int, answer: str | None, tokenizer: Tokenizer) -> Row:
    row = Row(padding=num_places - sum(map(_num_places, examples)), answer=answer)
    left = MOST_TOKENS
    for number, tokens in enumerate(examples):
        row.pieces += _pieces(tokens[:left], number, tokenizer)
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
