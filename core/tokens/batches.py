"""Batch `i` of a run, a pure function of the seed and `i`: nothing here has a position to lose.

Shapes: B batch, T time.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data import STREAMS, TokenData, window_starts
from core.losses import UNLEARNT, num_learnt
from core.tokens.packing import Packing
from core.tokens.token_files import TokenFile, ids_of

Which = Literal["train", "val"]
"""The part of the data that is learnt from, or the part that is kept back to measure with."""

TRIMMED_TO = 8
"""Rows end at the longest one of their batch, in steps of this: no need to compute what nobody reads."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Inputs (B, T), the tokens that follow them (B, T), −100 where nothing is learnt, and which example each is of."""

    ids_BT: Tensor
    targets_BT: Tensor
    segments_BT: Tensor | None = None
    num_targets: int = 0
    is_paired: bool = False
    """Row b belongs with row b + B / 2."""

    def in_parts(self, num_parts: int) -> list[tuple[Batch, float]]:
        """The rows in so many parts, or as many as there are, and what each counts in the mean over all.

        What is computed at once is smaller, and what comes out of it is the same but for the order of sums.
        """
        num_units = len(self.ids_BT) // 2 if self.is_paired else len(self.ids_BT)
        if num_parts == 1 or num_units == 1:
            return [(self, 1.0)]
        rows = torch.arange(len(self.ids_BT), device=self.ids_BT.device).view(-1, num_units)
        return [self._part(some.flatten()) for some in rows.chunk(num_parts, dim=1)]

    def _part(self, rows: Tensor) -> tuple[Batch, float]:
        targets_BT = self.targets_BT[rows]
        segments_BT = None if self.segments_BT is None else self.segments_BT[rows]
        learnt = num_learnt(targets_BT)
        share = len(rows) / len(self.ids_BT) if self.is_paired else learnt / self.num_targets
        return Batch(self.ids_BT[rows], targets_BT, segments_BT, learnt, self.is_paired), share

    def to(self, device: str | torch.device) -> Batch:
        """The same on a device."""
        segments_BT = None if self.segments_BT is None else self.segments_BT.to(device)
        tensors = (self.ids_BT.to(device), self.targets_BT.to(device), segments_BT)
        return Batch(*tensors, self.num_targets, self.is_paired)


class Batches(ABC):
    """All batches of a run."""

    warnings: Sequence[str] = ()
    num_tokens: dict[Which, int]
    """In each part."""

    @abstractmethod
    def training(self, index: int) -> Batch:
        """Batch `index` of the run, of any rank and step."""

    @abstractmethod
    def evaluation(self, which: Which, index: int) -> Batch:
        """Batch `index` of every evaluation, which has nothing to do with those of training."""

    @abstractmethod
    def per_epoch(self) -> float:
        """Batches in which each token, or each example, comes once on average."""

    def num_targets(self, index: int) -> int:
        """How many tokens are learnt in a batch."""
        return self.training(index).num_targets


@dataclass
class Windows(Batches):
    """Blocks of running text from random places.

    Args:
        texts: One or more sources as tokens.
        weights: Their shares.
    """

    texts: Sequence[TokenData]
    weights: Sequence[float]
    block_size: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        self.num_tokens = {"train": sum(len(t.train) for t in self.texts), "val": sum(len(t.val) for t in self.texts)}
        self.warnings = [text.warning for text in self.texts if text.warning]

    def training(self, index: int) -> Batch:
        """Random windows of the training parts."""
        return self._batch("train", "train", index)

    def evaluation(self, which: Which, index: int) -> Batch:
        """Random windows of either, the same ones each time."""
        return self._batch(which, "train_estimate" if which == "train" else "val", index)

    def per_epoch(self) -> float:
        """Windows are drawn, so a pass is as many tokens as there are."""
        return self.num_tokens["train"] / (self.batch_size * self.block_size)

    def num_targets(self, index: int) -> int:
        """All of them."""
        return self.batch_size * self.block_size

    def _batch(self, which: Which, stream: str, index: int) -> Batch:
        tokens = [text.train if which == "train" else text.val for text in self.texts]
        if len(tokens) == 1:
            starts_B = window_starts(len(tokens[0]), stream, index, self.seed, self.batch_size, self.block_size)
            window_BT = tokens[0][starts_B[:, None] + np.arange(self.block_size + 1)]
        else:
            draws = generator(self.seed, f"{stream} of several", index).random((self.batch_size, 2))
            chosen_B = chosen(self.weights, draws[:, 0])
            window_BT = np.stack(
                [self._window(tokens[source], draw) for source, draw in zip(chosen_B, draws[:, 1], strict=True)]
            )
        both = torch.from_numpy(window_BT.astype(np.int64))
        return Batch(both[:, :-1], both[:, 1:], None, self.batch_size * self.block_size)

    def _window(self, tokens: NDArray[np.int32], draw: float) -> NDArray[np.int32]:
        begin = int(draw * (len(tokens) - self.block_size))
        return tokens[begin : begin + self.block_size + 1]


@dataclass
class Examples(Batches):
    """Whole examples, several to a row where they are packed, in another order in each epoch.

    Of several sources, rows are drawn by weight, with replacement.

    Args:
        files: One or more sources as tokens.
        packings: How the training and the validation examples of each lie in rows.
        is_packed: Whether rows have more than one example.
    """

    files: Sequence[TokenFile]
    packings: Sequence[dict[Which, Packing]]
    weights: Sequence[float]
    block_size: int
    batch_size: int
    seed: int
    is_packed: bool
    warnings: Sequence[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.num_tokens = {which: sum(map(self._num_tokens, self.files, self._of(which))) for which in ("train", "val")}

    def training(self, index: int) -> Batch:
        """Rows of the training examples."""
        packings = self._of("train")
        if len(packings) > 1:
            draws = generator(self.seed, "rows of several", index).random((self.batch_size, 2))
            drawn = zip(chosen(self.weights, draws[:, 0]), draws[:, 1], strict=True)
            return self._batch("train", [(source, int(u * packings[source].num_rows)) for source, u in drawn])
        num_rows, first = packings[0].num_rows, index * self.batch_size
        places = range(first, first + self.batch_size)
        return self._batch(
            "train", [(0, int(order_of(self.seed, p // num_rows, num_rows)[p % num_rows])) for p in places]
        )

    def evaluation(self, which: Which, index: int) -> Batch:
        """Rows in one order for all evaluations, over and over; of several sources, drawn by weight."""
        packings = self._of(which)
        if len(packings) > 1:
            draws = generator(self.seed, f"evaluated {which} of several", index).random((self.batch_size, 2))
            drawn = zip(chosen(self.weights, draws[:, 0]), draws[:, 1], strict=True)
            return self._batch(which, [(source, int(u * packings[source].num_rows)) for source, u in drawn])
        # Packed rows lie in the order of their length.
        order = order_of(0, 0, packings[0].num_rows)
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % len(order)
        return self._batch(which, [(0, int(order[place])) for place in places])

    def per_epoch(self) -> float:
        """Each row once."""
        return sum(packing.num_rows for packing in self._of("train")) / self.batch_size

    def _of(self, which: Which) -> list[Packing]:
        return [packing[which] for packing in self.packings]

    def _num_tokens(self, file: TokenFile, packing: Packing) -> int:
        return int(np.minimum(np.diff(file.starts)[packing.order] - 1, self.block_size).sum())

    def _batch(self, which: Which, rows: Sequence[tuple[int, int]]) -> Batch:
        found = [self._row(source, self.packings[source][which].examples(row)) for source, row in rows]
        return laid_out(found, self.is_packed, self.block_size)

    def _row(self, source: int, examples: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        file = self.files[source]
        return [file.stored[file.starts[e] : file.starts[e + 1]][: self.block_size + 1] for e in examples]


@dataclass
class Pairs(Examples):
    """Preferences: of each pair the better answer, then, in the second half of the batch, the other.

    Examples 2k and 2k + 1 are a pair, and rows of the packings are pairs.
    """

    def _batch(self, which: Which, rows: Sequence[tuple[int, int]]) -> Batch:
        pairs = [(source, int(self.packings[source][which].examples(row)[0])) for source, row in rows]
        found = [self._row(source, np.array([2 * pair + side])) for side in (0, 1) for source, pair in pairs]
        return replace(laid_out(found, False, self.block_size), is_paired=True)

    def _num_tokens(self, file: TokenFile, packing: Packing) -> int:
        lengths = np.diff(file.starts).reshape(-1, 2)[packing.order]
        return int(np.minimum(lengths - 1, self.block_size).sum())


def laid_out(rows: Sequence[Sequence[NDArray[np.int32]]], is_packed: bool, block_size: int) -> Batch:
    """Examples as stored, each of at least two tokens, in rows as long as the longest, or a little longer.

    What is left of a row is an example of its own, of which nothing is learnt.
    """
    longest = max(sum(len(stored) - 1 for stored in row) for row in rows)
    shape = (len(rows), min(math.ceil(longest / TRIMMED_TO) * TRIMMED_TO, block_size))
    ids_BT, segments_BT = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets_BT = np.full(shape, UNLEARNT, np.int64)
    for at, row in enumerate(rows):
        end = 0
        for number, stored in enumerate(row):
            begin, end = end, end + len(stored) - 1
            ids_BT[at, begin:end] = ids_of(stored[:-1])
            targets_BT[at, begin:end] = np.where(stored[1:] < 0, UNLEARNT, stored[1:])
            segments_BT[at, begin:end] = number
        segments_BT[at, end:] = len(row)
    learnt = int((targets_BT != UNLEARNT).sum())
    segments = torch.from_numpy(segments_BT) if is_packed else None
    return Batch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT), segments, learnt)


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """The random numbers of one index of one stream, which overlap with no other's; see `core.data`."""
    return np.random.Generator(np.random.Philox(key=[seed, STREAMS[stream]], counter=[0, index, 0, 0]))


def chosen(weights: Sequence[float], draws_B: NDArray[np.float64]) -> list[int]:
    """Which source each number in [0, 1) falls to."""
    bounds = np.cumsum(weights) / sum(weights)
    found: list[int] = np.minimum(np.searchsorted(bounds, draws_B, side="right"), len(weights) - 1).tolist()
    return found


@lru_cache(maxsize=4)
def order_of(seed: int, epoch: int, num_rows: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch."""
    return generator(seed, "order of rows", epoch).permutation(num_rows)
