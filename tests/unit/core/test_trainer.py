from __future__ import annotations

from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.errors import NonFiniteLoss
from core.trainer import Outcome, build_optimizer, clip_gradients, learning_rate


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


def test_a_loss_that_is_not_a_number_ends_the_run_and_leaves_the_last_checkpoint(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(), store=store)
    update = told.trainer.parts.optimizer.step

    def poison_at_step_six(*given: Any) -> None:
        update(*given)
        if told.trainer.run.step == 5:
            with torch.no_grad():
                told.trainer.parts.model.head.bias.fill_(torch.nan)

    told.trainer.parts.optimizer.step = poison_at_step_six
    with pytest.raises(NonFiniteLoss, match="nan at step 6"):
        told.trainer.train()
    assert [item.manifest.step for item in store] == [4]


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


def test_warm_up_rises_in_a_straight_line_and_then_stays_level(config: Any) -> None:
    warm = config(training_steps=100, learning_rate=0.1, warmup_steps=4)
    assert [learning_rate(warm, step) for step in range(6)] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert learning_rate(config(use_lr_warmup=False, learning_rate=0.1), 0) == 0.1


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
    assert not sample.text.startswith("QUESTION: ") or not prompt


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
    told = run(config(), store=store)
    told.trainer.train()
    newest = next(iter(store))
    assert newest.manifest.hashes["source"] == source.sha256
    assert load_checkpoint(newest.path)["config"] == newest.manifest.config
