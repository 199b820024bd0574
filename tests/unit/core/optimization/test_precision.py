from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from core.errors import NonFiniteLoss
from core.optimization.precision import LEAST_SCALE, Precision
from core.tokens.batches import Batch


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2", "gpt2_lora"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_shorter_types_train_to_about_the_same_loss(run: Any, config: Any, kind: str, precision: str) -> None:
    """Rounding to 8 or 11 bits moves a loss of about 4 nats by less than a fiftieth of it over 30 steps."""
    settings = {"training_steps": 30, "eval_interval": 30, "learning_rate": 3e-3}
    plain, short = run(config(kind, **settings)), run(config(kind, **settings, precision=precision))
    plain.trainer.train()
    short.trainer.train()
    losses = [told.of("eval")[-1].val_loss for told in (plain, short)]
    assert losses[0] != losses[1], "nothing was computed in another type"
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_weights_and_moments_stay_in_fp32(run: Any, config: Any, precision: str) -> None:
    trainer = run(config(precision=precision)).trainer
    trainer.train()
    assert {weight.dtype for weight in trainer.parts.model.parameters()} == {torch.float32}
    moments = [value for state in trainer.parts.optimizer.state.values() for value in state.values()]
    assert {moment.dtype for moment in moments} == {torch.float32}


def test_two_batches_of_half_the_size_make_the_same_update(run: Any, config: Any, monkeypatch: Any) -> None:
    """The mean of two halves' means is the whole's; sums in another order differ in their last bits alone."""
    whole = run(config(batch_size=4, learning_rate=1e-2)).trainer
    halves = run(config(batch_size=2, gradient_accumulation_steps=2, learning_rate=1e-2)).trainer
    batch = whole.parts.training_batch(0, 0)
    ids, targets = batch.ids_BT.chunk(2), batch.targets_BT.chunk(2)
    monkeypatch.setattr(
        "core.parts.Parts.training_batch",
        lambda parts, _, number: batch if parts is whole.parts else Batch(ids[number], targets[number]),
    )
    assert halves.update() == pytest.approx(whole.update(), rel=1e-6)
    for one, other in zip(whole.parts.model.parameters(), halves.parts.model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-7)
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_batches_of_an_accumulation_are_never_the_same(run: Any, config: Any) -> None:
    parts = run(config(gradient_accumulation_steps=3)).trainer.parts
    batches = [parts.training_batch(step, number) for step in range(4) for number in range(3)]
    seen = {tuple(batch.ids_BT.flatten().tolist()) for batch in batches}
    assert len(seen) == 12


def test_an_overflow_in_fp16_leaves_an_update_out_and_scales_less(run: Any, config: Any) -> None:
    told = run(config(precision="fp16"))
    trainer = told.trainer
    trainer.parts.precision.restore({**trainer.parts.precision.state(), "scale": 2.0**120})
    before = {name: weight.clone() for name, weight in trainer.parts.model.state_dict().items()}
    trainer.update()
    assert all(weight.equal(before[name]) for name, weight in trainer.parts.model.state_dict().items())
    assert trainer.parts.precision.state()["scale"] == 2.0**119
    assert (trainer.run.step, math.isfinite(told.of("step")[0].grad_norm)) == (1, False)


def test_an_overflow_that_no_scale_is_to_blame_for_ends_the_run(run: Any, config: Any) -> None:
    trainer = run(config(precision="fp16")).trainer
    trainer.parts.precision.restore({**trainer.parts.precision.state(), "scale": LEAST_SCALE})
    honest = trainer.parts.model.forward
    trainer.parts.model.forward = lambda ids, targets, _: (None, (honest(ids, targets)[1] - 1.0).sqrt() * torch.inf)
    with pytest.raises(NonFiniteLoss):
        trainer.update()


def test_a_run_that_scales_no_more_forgets_the_scale() -> None:
    plain = Precision("fp32", "cpu")
    plain.restore({"scale": 4.0})
    assert plain.state() == {}
