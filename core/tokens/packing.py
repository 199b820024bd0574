"""Examples of many lengths in rows of one length: as few rows as a quick rule finds, each example whole."""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Packing:
    """Row r has the examples `order[starts[r]:starts[r + 1]]`."""

    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    @property
    def num_rows(self) -> int:
        """Rows in all."""
        return len(self.starts) - 1

    def examples(self, row: int) -> NDArray[np.int64]:
        """The examples of a row."""
        return self.order[self.starts[row] : self.starts[row + 1]]


def one_each(lengths: NDArray[np.int64]) -> Packing:
    """A row for each example."""
    return Packing(np.arange(len(lengths)), np.arange(len(lengths) + 1))


def packed(lengths: NDArray[np.int64], size: int) -> Packing:
    """Best fit, the longest first: each example goes where it leaves the least room.

    Args:
        lengths: Of the examples, each between 1 and `size`.
        size: Of a row.
    """
    rows: list[list[int]] = []
    # The rows that have so much room, by room; and which rooms there are, ascending.
    with_room: dict[int, list[int]] = {}
    rooms: list[int] = []
    for example in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[example])
        at = bisect_left(rooms, length)
        if at < len(rooms):
            room = rooms[at]
            row = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
            rows[row].append(example)
        else:
            room, row = size, len(rows)
            rows.append([example])
        left = room - length
        if left and left not in with_room:
            with_room[left] = []
            insort(rooms, left)
        if left:
            with_room[left].append(row)
    order = np.array([example for row in rows for example in row], dtype=np.int64)
    starts = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Packing(order, starts)
