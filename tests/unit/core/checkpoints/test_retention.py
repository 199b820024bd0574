from __future__ import annotations

from dataclasses import dataclass

import pytest

from core.checkpoints.retention import superseded


@dataclass(frozen=True)
class Saved:
    step: int
    val_loss: float | None = None
    pinned: bool = False
    created_at: float = 0.0


def steps(items: list[Saved]) -> list[int]:
    return sorted(item.step for item in items)


def test_the_latest_stay() -> None:
    run = [Saved(step) for step in (10, 20, 30, 40)]
    assert steps(superseded(run, 2)) == [10, 20]


def test_the_best_stays_however_old_and_of_equals_the_later_one() -> None:
    run = [Saved(10, 1.0), Saved(20, 0.5), Saved(30, 0.5), Saved(40, 0.9), Saved(50, 0.8)]
    assert steps(superseded(run, 1)) == [10, 20, 40]


def test_what_is_pinned_stays() -> None:
    run = [Saved(10, pinned=True), Saved(20), Saved(30)]
    assert steps(superseded(run, 1)) == [20]


def test_none_goes_if_none_is_to_go() -> None:
    assert superseded([Saved(10), Saved(20), Saved(30)], 0) == []


@pytest.mark.parametrize("keep", [1, 2, 100])
def test_the_last_one_left_never_goes(keep: int) -> None:
    assert superseded([Saved(10)], keep) == []
    assert superseded([], keep) == []


def test_of_two_at_one_step_the_later_counts_as_the_latest() -> None:
    earlier, later = Saved(20, created_at=1.0), Saved(20, created_at=2.0)
    assert superseded([earlier, later], 1) == [earlier]
