"""How long a warm-up is, is settled when a run begins: no resume but a warm start changes a rate on the way up."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.resume_rules import ResumeMode
from core.config import MOST_STEPS, config_to_dict, resume_config
from core.errors import CheckpointMismatch

EPOCH = {"num_epochs": 1, "training_steps": MOST_STEPS, "warmup_steps": 100, "enable_checkpoints": False}


def begun(run: Any, config: Any, store: CheckpointStore, stop_at: int, **given: Any) -> tuple[Any, Any]:
    """A run of one epoch that was stopped, as it is in memory and as its checkpoint."""
    part = run(config(**EPOCH, **given), store=store)
    part.stop_at = stop_at
    part.trainer.train()
    return part, load_checkpoint(next(item.path for item in store if item.manifest.step == stop_at))


def gone_on(run: Any, content: Any, overrides: dict[str, Any], mode: ResumeMode, **given: Any) -> Any:
    found, _ = resume_config(content, overrides, mode)
    again = run(found, resume=content, mode=mode, **given)
    again.trainer.train()
    return again


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_same_end_said_in_steps_gives_the_same_weights(
    run: Any, config: Any, store: CheckpointStore, schedule: str
) -> None:
    whole = run(config(**EPOCH, lr_schedule=schedule))
    whole.trainer.train()
    end = whole.trainer.run.end_step
    assert end >= 30, "or there is no warm-up to speak of"
    _, content = begun(run, config, store, 2, lr_schedule=schedule)
    again = gone_on(run, content, {"training_steps": end - 2}, ResumeMode.EXACT)
    assert [step.lr for step in again.of("step")] == [step.lr for step in whole.of("step")[2:]]
    expected = whole.trainer.parts.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in again.trainer.parts.model.state_dict().items())


@pytest.mark.parametrize("mode", [ResumeMode.EXACT, ResumeMode.EXTEND])
@pytest.mark.parametrize("is_old", [False, True], ids=["new", "of an earlier release"])
def test_more_epochs_keep_the_warm_up(
    run: Any, config: Any, store: CheckpointStore, mode: ResumeMode, is_old: bool
) -> None:
    part, content = begun(run, config, store, 20)
    rising = part.trainer.run.num_rising
    if is_old:
        del content["run"]["num_rising"]
    again = gone_on(run, content, {"num_epochs": 5, "training_steps": 10}, mode)
    assert again.trainer.run.num_rising == rising < 20
    assert {step.lr for step in again.of("step")} == {part.trainer.parts.config.learning_rate}


def test_a_second_resume_keeps_it_too_and_a_warm_start_begins_another(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    part, content = begun(run, config, store, 4)
    gone_on(run, content, {"num_epochs": 5, "training_steps": 3}, ResumeMode.EXTEND, store=store)
    second = load_checkpoint(next(item.path for item in store if item.manifest.step == 7))
    again = gone_on(run, second, {"training_steps": 3}, ResumeMode.EXTEND)
    assert again.trainer.run.num_rising == part.trainer.run.num_rising
    warm = gone_on(run, second, {"training_steps": 3}, ResumeMode.WARM_START)
    assert warm.trainer.run.num_rising == 100


@pytest.mark.parametrize(
    ("overrides", "field"), [({"num_epochs": 5}, "num_epochs"), ({"training_steps": 5}, "training_steps")]
)
def test_another_end_under_a_falling_rate_names_the_setting(config: Any, overrides: dict[str, Any], field: str) -> None:
    saved = {"config": config_to_dict(config(**EPOCH, lr_schedule="linear")), "step": 4, "end_step": 90}
    with pytest.raises(CheckpointMismatch, match="mode 'exact' ends at step 90") as refused:
        resume_config(saved, overrides, ResumeMode.EXACT)
    assert refused.value.field == field
