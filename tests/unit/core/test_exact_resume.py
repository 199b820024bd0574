"""Stopped and resumed equals uninterrupted, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.resume_rules import ResumeMode
from core.errors import CheckpointMismatch
from core.optimization.moments import optimizer_state
from core.sources.files import SourceText
from tests.unit.core.conftest import KINDS


def everything(trainer: Any) -> dict[str, torch.Tensor]:
    moments, _ = optimizer_state(trainer.parts.optimizer, trainer.parts.model)
    return {**dict(trainer.parts.model.state_dict()), **moments}


def resumed(run: Any, config: Any, store: CheckpointStore, step: int) -> Any:
    found = next(item for item in store if item.manifest.step == step)
    content = load_checkpoint(found.path)
    return run(config, store=store, resume=content, end_step=content["end_step"])


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("stops", [(1,), (3, 5), (4, 6, 7)])
def test_stopped_and_resumed_equals_uninterrupted(
    run: Any, config: Any, store: CheckpointStore, kind: str, stops: tuple[int, ...]
) -> None:
    wanted = config(kind, dropout=0.1)
    whole = run(wanted)
    whole.trainer.train()
    part = run(wanted, store=store)
    steps = []
    for stop in stops:
        part.stop_at = stop
        part.trainer.train()
        steps += part.of("step")
        part = resumed(run, wanted, store, stop)
    part.trainer.train()
    steps += part.of("step")
    assert [event.loss for event in steps] == [event.loss for event in whole.of("step")]
    assert [event.grad_norm for event in steps] == [event.grad_norm for event in whole.of("step")]
    expected = everything(whole.trainer)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in everything(part.trainer).items())
    assert part.trainer.run.evaluations == whole.trainer.run.evaluations


def test_a_resumed_run_remembers_where_its_loss_began(run: Any, config: Any, store: CheckpointStore) -> None:
    first = run(config(), store=store)
    first.stop_at = 5
    first.trainer.train()
    second = resumed(run, config(), store, 5)
    second.trainer.train()
    began, ended = first.of("eval")[0].train_loss, second.of("eval")[-1].train_loss
    assert f"📉 Net loss change since beginning: {ended - began:+.4f}" in second.lines
    assert [event.step for event in second.of("eval")] == [8], "what the checkpoint knew is not measured again"


def test_a_run_resumed_at_its_end_only_finishes(run: Any, config: Any, store: CheckpointStore) -> None:
    run(config(), store=store).trainer.train()
    again = resumed(run, config(), store, 8)
    again.trainer.train()
    assert again.of("step") == again.of("checkpoint") == []


def test_warm_start_takes_weights_alone(run: Any, config: Any, store: CheckpointStore) -> None:
    done = run(config(), store=store)
    done.trainer.train()
    content = load_checkpoint(next(iter(store)).path)
    warm = run(config(), resume=content, mode=ResumeMode.WARM_START)
    assert warm.trainer.run.step == 0
    assert not warm.trainer.parts.optimizer.state
    weights = done.trainer.parts.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in warm.trainer.parts.model.state_dict().items())


def test_a_changed_text_is_refused_by_name_unless_the_start_is_warm(
    run: Any, config: Any, store: CheckpointStore, source: SourceText
) -> None:
    run(config(), store=store).trainer.train()
    content = load_checkpoint(next(iter(store)).path)
    content["source_sha256"] = "0" * 64
    with pytest.raises(CheckpointMismatch, match=r"sums\.md.*content has changed"):
        run(config(), resume=content)
    run(config(), resume=content, mode=ResumeMode.WARM_START)


def test_weights_of_another_shape_are_refused(run: Any, config: Any, store: CheckpointStore) -> None:
    run(config(), store=store).trainer.train()
    content = load_checkpoint(next(iter(store)).path)
    with pytest.raises(CheckpointMismatch, match="shape"):
        run(config(n_embd=32), resume=content)
