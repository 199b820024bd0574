from __future__ import annotations

from typing import Any

import pytest

from core.checkpoints.data_place import moved, next_row, what_becomes_of_rows
from core.errors import Difference

BEFORE: dict[str, Any] = {"batch_size": 4, "gradient_accumulation_steps": 2, "num_processes": 1, "skip_batches": 0}


def test_rows_are_counted_over_accumulation_ranks_and_what_is_left_out() -> None:
    assert next_row({**BEFORE, "num_processes": 3, "skip_batches": 5}, 10) == 15 * 4 * 2 * 3
    assert next_row({"batch_size": 4}, 10) == 40


@pytest.mark.parametrize(
    ("changed", "row"),
    [({"batch_size": 8}, 160), ({"gradient_accumulation_steps": 1}, 40), ({"num_processes": 2}, 160)],
)
def test_another_size_of_batches_moves_the_place(changed: dict[str, Any], row: int) -> None:
    assert moved(BEFORE, {**BEFORE, **changed}, 10) == Difference("next_row", 80, row)
    said = what_becomes_of_rows(BEFORE, {**BEFORE, **changed}, 10)
    became = "80 rows are passed over" if row > 80 else "40 rows come again"
    (name,) = changed
    assert said == f"{name} changed, so the run goes on with row {row} of its batches instead of row 80: {became}"


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"learning_rate": 0.1},
        {"skip_batches": 7},
        {"batch_size": 8, "gradient_accumulation_steps": 1},
        {"batch_size": 2, "num_processes": 2},
    ],
)
def test_as_many_rows_to_a_step_leave_it_where_it_was(changed: dict[str, Any]) -> None:
    assert moved(BEFORE, {**BEFORE, **changed}, 10) is None
    assert what_becomes_of_rows(BEFORE, {**BEFORE, **changed}, 10) is None


def test_a_setting_that_the_checkpoint_does_not_know_has_not_changed() -> None:
    assert moved({"batch_size": 4}, BEFORE, 10) is None


def test_before_its_first_step_nothing_is_missed() -> None:
    assert moved(BEFORE, {**BEFORE, "batch_size": 64}, 0) is None
