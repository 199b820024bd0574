from __future__ import annotations

from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.saving import RunIdentity
from core.errors import NonFiniteLoss
from core.memory import Portions
from core.monitoring.evaluation import Evaluation
from core.trainer import Outcome, build_optimizer, clip_gradients, estimate_loss
from tests.unit.core.conftest import KINDS


def test_a_run_makes_every_step_and_says_so_in_order(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(), store=store)
    assert told.trainer.train() is Outcome.FINISHED
    assert [event.step for event in told.of("step")] == list(range(1, 9))
    assert [event.step for event in told.of("eval")] == [0, 4, 8]
    assert [event.step for event in told.of("checkpoint")] == [4, 8]


def test_an_evaluation_comes_before_the_checkpoint_of_its_step(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(), store=store)
    told.trainer.train()
    saved, measured = told.of("checkpoint")[-1], told.of("eval")[-1]
    assert (saved.train_loss, saved.val_loss) == (measured.train_loss, measured.val_loss)


def test_the_loss_falls(run: Any, config: Any) -> None:
    told = run(config(training_steps=60, learning_rate=1e-2, eval_interval=60))
    told.trainer.train()
    first, last = told.of("eval")
    assert last.val_loss < first.val_loss - 0.5


def test_a_line_every_25_steps_where_no_evaluation_says_more(run: Any, config: Any) -> None:
    told = run(config(training_steps=110, eval_interval=50))
    told.trainer.train()
    assert [line.split(":")[0] for line in told.lines if line.startswith("⏳")] == ["⏳ step 25/110", "⏳ step 75/110"]


def test_net_changes_are_told_since_the_beginning_and_since_the_last_checkpoint(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(), store=store)
    told.trainer.train()
    losses = [event.train_loss for event in told.of("eval")]
    told_changes = [line for line in told.lines if line.startswith("📉")]
    assert told_changes == [
        f"📉 Net loss change since beginning: {losses[1] - losses[0]:+.4f}",
        f"📉 Net loss change since beginning: {losses[2] - losses[0]:+.4f}",
        f"📉 Net loss change since last checkpoint: {losses[2] - losses[1]:+.4f}",
    ]


def test_stop_requested_before_the_loop_starts_is_not_lost(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(), store=store)
    told.stop_at = 0
    assert told.trainer.train() is Outcome.STOPPED
    assert told.of("step") == []


def test_a_stop_keeps_a_checkpoint_of_the_step_it_came_at(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(), store=store)
    told.stop_at = 6
    assert told.trainer.train() is Outcome.STOPPED
    assert [event.step for event in told.of("checkpoint")] == [4, 6]


def test_it_is_asked_whether_to_stop_at_every_step_and_every_batch_of_an_evaluation(run: Any, config: Any) -> None:
    told = run(config(training_steps=6, eval_interval=6, eval_iters=3))
    asked: list[int] = []
    told.trainer.should_stop = lambda: asked.append(told.trainer.run.step) is not None
    told.trainer.train()
    assert asked == [0] * (2 * 3) + [0, 1, 2, 3, 4, 5] + [6] * (2 * 3)


def test_without_checkpoints_at_intervals_the_result_is_still_kept(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(enable_checkpoints=False), store=store)
    told.trainer.train()
    assert [event.step for event in told.of("checkpoint")] == [8]


def test_without_a_store_nothing_is_written(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config())
    told.trainer.train()
    assert told.of("checkpoint") == []
    assert not store.root.exists()


@pytest.mark.parametrize("poisoned", ["loss", "gradient"])
@pytest.mark.parametrize("step", [5, 6, 8])
def test_what_is_not_a_number_ends_the_run_before_it_reaches_weights_or_checkpoint(
    run: Any, config: Any, store: CheckpointStore, poisoned: str, step: int
) -> None:
    told = run(config(checkpoint_interval=1), store=store)
    model = told.trainer.parts.model
    honest = model.forward

    def poisoning(ids_BT: torch.Tensor, targets_BT: torch.Tensor | None = None, _: Any = None) -> Any:
        logits_BTV, loss = honest(ids_BT, targets_BT)
        if loss is not None and model.training and told.trainer.run.step == step - 1:
            loss = loss * torch.nan if poisoned == "loss" else loss + (loss - loss.detach()) * torch.inf
        return logits_BTV, loss

    model.forward = poisoning
    with pytest.raises(NonFiniteLoss, match=f"at step {step - 1}"):
        told.trainer.train()
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())
    assert max(item.manifest.step for item in store) == step - 1


@pytest.mark.parametrize(("accumulation", "said"), [(1, "batch 5"), (3, "batches 15 to 17")])
def test_the_batches_that_broke_a_run_are_named(
    run: Any, config: Any, monkeypatch: pytest.MonkeyPatch, accumulation: int, said: str
) -> None:
    told = run(config(gradient_accumulation_steps=accumulation, skip_batches=2))
    honest = told.trainer.portions.mean_of_step

    def broken(_: Portions, total: float) -> float:
        return float("nan") if told.trainer.run.step == 3 else honest(total)

    monkeypatch.setattr("core.memory.Portions.mean_of_step", broken)
    with pytest.raises(NonFiniteLoss, match=f"the loss of {said} became nan at step 3: .* skip_batches=6"):
        told.trainer.train()


def test_an_evaluation_that_is_not_a_number_ends_the_run_before_its_checkpoint(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = run(config(), store=store)
    monkeypatch.setattr(
        "core.trainer.evaluate",
        lambda *_: Evaluation(1.0, float("nan") if told.trainer.run.step == 8 else 1.0, 0.5, 2.7),
    )
    with pytest.raises(NonFiniteLoss, match="evaluated val loss became nan at step 8"):
        told.trainer.train()
    assert [item.manifest.step for item in store] == [4]


def test_a_checkpoint_has_the_losses_of_its_own_step_or_none(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(checkpoint_interval=2), store=store)
    told.trainer.train()
    measured = {event.step: event.val_loss for event in told.of("eval")}
    assert {item.manifest.step: item.manifest.val_loss for item in store} == {
        2: None, 4: measured[4], 6: None, 8: measured[8]
    }  # fmt: skip


def test_a_sample_that_fails_is_a_warning_and_not_the_end_of_a_finished_run(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("probability tensor contains either inf or nan")

    monkeypatch.setattr("core.monitoring.samples.Completion", fail)
    told = run(config(max_new_tokens=5), store=store)
    assert told.trainer.train() is Outcome.FINISHED
    assert "no sample could be written" in told.of("warning")[0].message


def test_a_stop_does_not_wait_for_an_evaluation_which_is_made_when_the_run_goes_on(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(eval_iters=1000), store=store)
    told.stop_at = 4
    told.trainer.parts.model.train()
    told.trainer.run.step = 4
    assert estimate_loss(told.trainer.parts, told.should_stop) is None
    assert told.trainer.parts.model.training


@pytest.mark.parametrize(("kind", "limit"), [("from_scratch", 1.0), ("gpt2", 1.0), ("gpt2_lora", 2.0)])
def test_gradients_are_clipped_at_one_and_with_lora_at_two(run: Any, config: Any, kind: str, limit: float) -> None:
    model = run(config(kind)).trainer.parts.model
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.grad = torch.full_like(parameter, 3.0)
    before = clip_gradients(model, config(kind))
    after = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(p.grad) for p in trainable]))
    assert before > limit
    assert after.item() == pytest.approx(limit, rel=1e-4)


def test_the_rate_of_each_step_follows_the_schedule(run: Any, config: Any) -> None:
    told = run(config(learning_rate=0.1, warmup_steps=4, lr_schedule="linear", min_lr_ratio=0.2))
    told.trainer.train()
    rates = [event.lr for event in told.of("step")]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.08, 0.06, 0.04, 0.02])


@pytest.mark.parametrize("kind", ["from_scratch_lora", "gpt2_lora"])
def test_with_lora_the_optimizer_has_only_what_trains(run: Any, config: Any, kind: str) -> None:
    model = run(config(kind)).trainer.parts.model
    optimized = {id(p) for group in build_optimizer(config(kind), model).param_groups for p in group["params"]}
    assert optimized == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(optimized) < len(list(model.parameters()))


@pytest.mark.parametrize("kind", ["from_scratch_lora", "gpt2_lora"])
def test_training_leaves_frozen_weights_as_they_were(run: Any, config: Any, kind: str) -> None:
    told = run(config(kind))
    named = dict(told.trainer.parts.model.named_parameters())
    before = {name: p.detach().clone() for name, p in named.items()}
    told.trainer.train()
    changed = {name for name, p in named.items() if not torch.equal(before[name], p)}
    assert changed
    assert changed <= {name for name, p in named.items() if p.requires_grad}


def test_evaluating_draws_from_no_generator(run: Any, config: Any) -> None:
    told = run(config(dropout=0.2))
    before = torch.get_rng_state()
    told.trainer.evaluate()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("kind", "prompt"), [("from_scratch", ""), ("gpt2", "QUESTION: ")])
def test_a_run_ends_with_text_from_its_own_prompt(run: Any, config: Any, kind: str, prompt: str) -> None:
    told = run(config(kind, max_new_tokens=12))
    told.trainer.train()
    (sample,) = told.of("sample")
    assert sample.prompt == prompt
    assert len(sample.text) <= 12 * 10
    assert kind == "from_scratch" or not sample.text.startswith(prompt)


def test_a_block_longer_than_the_model_sees_is_capped_and_said(run: Any, config: Any) -> None:
    told = run(config("gpt2", block_size=100, training_steps=1))
    told.trainer.train()
    assert told.trainer.parts.block_size == 64
    assert [event.message for event in told.of("warning")] == [
        "block_size 100 is more than the model's 64 positions; training with 64"
    ]


def test_a_checkpoint_knows_its_parent_and_what_it_was_made_of(
    run: Any, config: Any, store: CheckpointStore, source: Any
) -> None:
    told = run(config(), store=store, identity=RunIdentity("job_a", 2, 3, "parent"))
    told.trainer.train()
    newest = next(iter(store))
    made = newest.manifest
    assert (made.job_id, made.attempt, made.fence, made.parent) == ("job_a", 2, 3, "parent")
    assert newest.manifest.hashes["source"] == source.sha256
    assert load_checkpoint(newest.path)["config"] == newest.manifest.config


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_run_shows_that_it_lives_between_its_stages(run: Any, config: Any, store: CheckpointStore, kind: str) -> None:
    signs: list[None] = []
    run(config(kind), store=store, meanwhile=lambda: signs.append(None))
    assert len(signs) >= 4


def test_a_run_stopped_in_its_last_evaluation_measures_when_it_goes_on(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(), store=store)
    told.stop_at = 8
    assert told.trainer.train() is Outcome.STOPPED
    assert [event.step for event in told.of("eval")] == [0, 4]
    content = load_checkpoint(max(store, key=lambda item: item.step).path)
    again = run(config(), store=store, resume=content, end_step=8)
    assert again.trainer.train() is Outcome.FINISHED
    assert [event.step for event in again.of("eval")] == [8]
