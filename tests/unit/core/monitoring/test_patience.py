"""When a run is told that it no longer gets better."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.monitoring.patience import best_evaluation, should_stop_early

Evaluations = list[dict[str, float]]


def evaluations(*losses: float) -> Evaluations:
    return [{"step": 10 * number, "train_loss": 0.0, "val_loss": loss} for number, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 2.0, 1.0], False),
        ([3.0, 2.0, 2.5], False),
        ([3.0, 2.0, 2.5, 2.1], True),
        ([3.0, 2.0, 2.5, 2.0], True),
        ([3.0, 2.0, 2.5, 1.9], False),
        ([3.0, 2.0, 2.5, 1.9, 2.0, 2.0], True),
    ],
)
def test_a_run_stops_after_so_many_evaluations_that_were_no_better(losses: list[float], stops: bool) -> None:
    assert should_stop_early(evaluations(*losses), 2) is stops


def test_without_patience_no_run_stops() -> None:
    assert not should_stop_early(evaluations(1.0, *[2.0] * 50), 0)


def test_better_by_less_than_what_counts_is_no_better() -> None:
    slowly = evaluations(3.0, 2.95, 2.9, 2.85)
    assert not should_stop_early(slowly, 2)
    assert should_stop_early(slowly, 2, 0.2)
    assert not should_stop_early(evaluations(3.0, 2.9, 2.7), 2, 0.2), "small steps add up"


def test_a_run_that_goes_on_has_all_its_patience_again_and_is_measured_against_the_best_before() -> None:
    ended = evaluations(2.0, 3.0, 3.0)
    assert should_stop_early(ended, 2)
    assert not should_stop_early(ended, 2, since_step=20)
    gone_on = evaluations(2.0, 3.0, 3.0, 2.5, 2.4)
    assert not should_stop_early(gone_on[:-1], 2, since_step=20)
    assert should_stop_early(gone_on, 2, since_step=20)


def test_the_best_is_the_first_of_equals() -> None:
    assert best_evaluation([]) is None
    best = best_evaluation(evaluations(3.0, 1.0, 2.0, 1.0))
    assert best is not None
    assert best["step"] == 10


@given(st.lists(st.integers(0, 4).map(float), max_size=12), st.integers(1, 5))
def test_a_run_stops_just_where_nothing_of_its_last_part_is_below_all_before(
    losses: list[float], patience: int
) -> None:
    last, before = losses[-patience:], losses[:-patience]
    expected = bool(before) and min(last) >= min(before)
    assert should_stop_early(evaluations(*losses), patience) is expected
