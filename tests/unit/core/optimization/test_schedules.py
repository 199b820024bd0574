"""The rate of each update: what rises, what falls, and where it ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.hyperparameters.learning import LearningSettings
from core.optimization.schedules import learning_rate_factor, num_falling_steps

FALLING = ("linear", "cosine", "wsd")

LEAST = st.sampled_from([0.0, 0.1, 1.0]) | st.floats(0, 1)
FRACTION = st.sampled_from([0.01, 0.2, 1.0]) | st.floats(0.001, 1)


def rates(config: LearningSettings, num_steps: int) -> list[float]:
    return [learning_rate_factor(config, step, num_steps) for step in range(num_steps)]


def any_config(**fixed: Any) -> st.SearchStrategy[LearningSettings]:
    return st.builds(
        LearningSettings,
        **{
            "lr_schedule": st.sampled_from(["constant", *FALLING]),
            "use_lr_warmup": st.booleans(),
            "warmup_steps": st.integers(1, 60),
            "min_lr_ratio": LEAST,
            "decay_fraction": FRACTION,
            **fixed,
        },
    )


@given(any_config(), st.integers(0, 400), st.integers(1, 300))
def test_a_rate_is_between_nothing_and_its_peak_even_past_the_end(
    config: LearningSettings, step: int, end_step: int
) -> None:
    assert 0.0 <= learning_rate_factor(config, step, end_step) <= 1.0


@given(any_config(), st.integers(1, 200))
def test_a_rate_first_rises_then_stays_then_falls(config: LearningSettings, num_steps: int) -> None:
    found = rates(config, num_steps)
    num_falling = num_falling_steps(config, num_steps)
    rising, falling = found[: num_steps - num_falling], found[num_steps - num_falling - 1 :]
    assert all(one <= other for one, other in pairwise(rising))
    assert all(one >= other for one, other in pairwise(falling))
    if num_falling:
        assert rising[-1] == 1.0


@given(any_config(lr_schedule=st.sampled_from(FALLING)), st.integers(2, 200))
def test_what_falls_ends_at_the_least_rate(config: LearningSettings, num_steps: int) -> None:
    if config.use_lr_warmup and config.warmup_steps >= num_steps:
        assert rates(config, num_steps)[-1] == min(1.0, num_steps / config.warmup_steps)
    else:
        assert rates(config, num_steps)[-1] == config.min_lr_ratio


@given(any_config(lr_schedule=st.just("constant")), st.integers(0, 100), st.integers(1, 100))
def test_a_constant_rate_is_what_it_was_before_there_were_schedules(
    config: LearningSettings, step: int, end_step: int
) -> None:
    before = min(1.0, (step + 1) / config.warmup_steps) if config.use_lr_warmup else 1.0
    assert learning_rate_factor(config, step, end_step) == before


@given(any_config(use_lr_warmup=st.just(True)), st.integers(1, 59))
def test_a_warm_up_longer_than_the_run_only_rises(config: LearningSettings, num_steps: int) -> None:
    warm = config.model_copy(update={"warmup_steps": 60})
    assert rates(warm, num_steps) == [(step + 1) / 60 for step in range(num_steps)]


def test_a_straight_line_falls_by_the_same_with_every_update() -> None:
    config = LearningSettings(lr_schedule="linear", use_lr_warmup=True, warmup_steps=2, min_lr_ratio=0.2)
    assert rates(config, 6) == pytest.approx([0.5, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_a_cosine_is_half_way_down_in_the_middle_and_slow_at_both_ends() -> None:
    found = rates(LearningSettings(lr_schedule="cosine", use_lr_warmup=False), 101)
    assert found[50] == pytest.approx(0.5)
    assert found[0] - found[10] < 0.03
    assert found[90] - found[100] < 0.03


def test_wsd_is_level_until_its_last_part_which_never_reaches_into_the_warm_up() -> None:
    config = LearningSettings(lr_schedule="wsd", warmup_steps=2, decay_fraction=0.4)
    assert rates(config, 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert rates(config.model_copy(update={"decay_fraction": 1.0}), 4) == pytest.approx([0.5, 1, 0.5, 0])


def test_a_run_of_one_update_makes_it_with_the_whole_rate() -> None:
    for name in FALLING:
        assert rates(LearningSettings(lr_schedule=name, use_lr_warmup=False), 1) == [1.0]


@given(any_config(lr_schedule=st.sampled_from(FALLING)), st.integers(2, 100))
def test_a_longer_run_is_never_slower_than_a_shorter_one_at_the_same_step(
    config: LearningSettings, num_steps: int
) -> None:
    if config.lr_schedule != "wsd":
        longer = [learning_rate_factor(config, step, num_steps * 2) for step in range(num_steps)]
        assert all(one <= other + 1e-12 for one, other in zip(rates(config, num_steps), longer, strict=True))
