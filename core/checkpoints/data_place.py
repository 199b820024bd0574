"""Where a run that goes on begins in its rows, if its batches have another size than before. Light.

Rows of one source are counted through: batch `i` has those from `i` times its size on, see `core.tokens.batches`. The
place of a run is its step, so where batches change their size, the same step is another row. What is drawn at random
(running text, or several sources by weight) has no place to miss.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from core.errors import Difference

SIZES = ("batch_size", "gradient_accumulation_steps", "num_processes")
"""How many rows are in a step."""

NEXT_ROW = "next_row"
"""What a moved place is called among the differences."""


def next_row(config: Mapping[str, Any], step: int) -> int:
    """The rows before those of `step`, over all epochs, by a configuration as plain values."""
    return (step + int(config.get("skip_batches", 0))) * _rows_per_step(config)


def moved(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> Difference | None:
    """The row at which the run would have gone on at `step`, and the one at which it does; None if they are the same.

    Batches that are left out on purpose are left out either way.

    Args:
        before: The configuration of the checkpoint, maybe of an earlier release.
        now: That of the run that goes on from it.
    """
    known = {name: now.get(name, 1) for name in SIZES} | {name: before[name] for name in SIZES if name in before}
    would, does = next_row({**now, **known}, step), next_row(now, step)
    return Difference(NEXT_ROW, would, does) if would != does else None


def what_becomes_of_rows(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> str | None:
    """The same in a sentence: which settings moved it, and how many rows are passed over or come again."""
    found = moved(before, now, step)
    if found is None:
        return None
    names = [name for name in SIZES if name in before and before[name] != now.get(name, before[name])]
    by = found.after - found.before
    become = "are passed over" if by > 0 else "come again"
    return (
        f"{', '.join(names)} changed, so the run goes on with row {found.after:,} of its batches instead of row "
        f"{found.before:,}: {abs(by):,} rows {become}"
    )


def _rows_per_step(config: Mapping[str, Any]) -> int:
    return math.prod(int(config.get(name, 1)) for name in SIZES)
