"""How large an update is, as a part of the peak rate: a function of the step, and of how long the warm-up is.

That length is settled when a run begins and saved with it: a tenth of a run in epochs is another number once it goes
on to another end, and what has risen would fall back.

| schedule | after the warm-up |
| --- | --- |
| `constant` | level |
| `linear` | down in a straight line |
| `cosine` | down in half a wave: slow, fast, slow |
| `wsd` | level, then down in a straight line over the last `decay_fraction` of the run |

What falls has reached `min_lr_ratio` at the run's last update. A run that goes on from its end has a new end: its rate
is that of a longer run, so it may rise again, without another warm-up. Light: no torch.
"""

from __future__ import annotations

import math

from core.hyperparameters.learning import LearningSettings


def learning_rate_factor(config: LearningSettings, step: int, end_step: int, num_rising: int | None = None) -> float:
    """The part of its peak rate that the update which follows `step` updates is made with, from 0 to 1.

    Args:
        end_step: The last update of the run. A run that ends before its warm-up does never falls.
        num_rising: The updates of the warm-up; by default what a run that begins with this end would make.
    """
    num_rising = num_rising or num_rising_steps(config, end_step)
    num_falling = num_falling_steps(config, end_step, num_rising)
    top = end_step - 1 - num_falling
    if step <= top or not num_falling:
        return min(1.0, (step + 1) / num_rising)
    gone = min(1.0, (step - top) / num_falling)
    left = (1.0 + math.cos(math.pi * gone)) / 2 if config.lr_schedule == "cosine" else 1.0 - gone
    return config.min_lr_ratio + (1.0 - config.min_lr_ratio) * left


def num_rising_steps(config: LearningSettings, end_step: int) -> int:
    """The updates of the warm-up, the last of which is made with the peak rate; 1 without one.

    How long a run of epochs is, nobody knew when its warm-up was chosen.
    """
    if not config.use_lr_warmup:
        return 1
    return config.warmup_steps if config.num_epochs is None else min(config.warmup_steps, max(1, end_step // 10))


def num_falling_steps(config: LearningSettings, end_step: int, num_rising: int | None = None) -> int:
    """How many of the run's last updates are made with less than the peak rate, each with less than the one before."""
    if config.lr_schedule == "constant":
        return 0
    # The first update that is made with the peak rate is the last of the warm-up.
    room = max(0, end_step - (num_rising or num_rising_steps(config, end_step)))
    return min(room, max(1, round(config.decay_fraction * end_step))) if config.lr_schedule == "wsd" else room
