"""Memory that runs out: the same is learnt in smaller parts, and a resumed run knows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.errors import OutOfMemory
from core.objectives import NextToken, Preference

ROWS = {
    "from_scratch": [{"prompt": f"{a} plus?", "completion": f" {a}" * (1 + a % 3)} for a in range(40)],
    "gpt2": [{"prompt": f"{a}?", "chosen": " yes", "rejected": " never"} for a in range(40)],
}


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """As if there were memory for no more than so many rows at once."""

    def too_large(most: int) -> None:
        for kind in (NextToken, Preference):
            for name in ("loss", "measure"):
                honest = getattr(kind, name)

                def limited(self: Any, model: Any, batch: Any, *rest: Any, honest: Any = honest) -> Any:
                    if len(batch.ids_BT) > most:
                        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
                    return honest(self, model, batch, *rest)

                monkeypatch.setattr(kind, name, limited)

    return too_large


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2"])
@pytest.mark.parametrize("text", [True, False])
def test_a_run_without_memory_learns_the_same_in_smaller_parts(
    run: Any, config: Any, corpus: Any, too_large: Any, kind: str, text: bool
) -> None:
    given = {"batch_size": 8, "training_steps": 6, "eval_interval": 3, "block_size": 24, "learning_rate": 1e-3}
    sources = {} if text else {"source": corpus(ROWS[kind])}
    plain = run(config(kind, **given), **sources)
    plain.trainer.train()
    # Rows of preferences come in pairs.
    too_large(4 if text or kind == "from_scratch" else 8)
    tight = run(config(kind, **given), **sources)
    tight.trainer.train()
    assert tight.trainer.run.num_parts == 2
    [said] = [event.message for event in tight.of("warning") if "memory" in event.message]
    assert said.startswith("memory ran out at step 0: from here on each batch is computed in 2 parts")
    for one, other in zip(plain.of("step"), tight.of("step"), strict=True):
        assert other.loss == pytest.approx(one.loss, rel=1e-4)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
    for one, other in zip(plain.of("eval"), tight.of("eval"), strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
        assert other.val_accuracy == pytest.approx(one.val_accuracy)


def test_a_resumed_run_knows_how_much_fits_and_equals_an_undisturbed_one(
    run: Any, config: Any, store: CheckpointStore, too_large: Any, tmp_path: Any
) -> None:
    given = config(batch_size=8, dropout=0.2)
    too_large(2)
    undisturbed = CheckpointStore(tmp_path / "undisturbed")
    run(given, store=undisturbed).trainer.train()
    halfway = run(given, store=store)
    halfway.stop_at = 4
    halfway.trainer.train()
    middle = load_checkpoint(max(store, key=lambda item: item.step).path)
    assert middle["run"]["num_parts"] == 4
    resumed = run(given, store=store, resume=middle, start_step=0, end_step=8)
    resumed.trainer.train()
    assert not [event for event in resumed.of("warning") if "memory" in event.message]
    last = [max(items, key=lambda item: item.step).manifest.files for items in (undisturbed, store)]
    assert last[0] == last[1]


@pytest.mark.parametrize(("batch_size", "num_parts"), [(8, 2), (4, 1)])
def test_a_run_that_goes_on_tries_whole_batches_only_if_they_are_others(
    run: Any, config: Any, store: CheckpointStore, batch_size: int, num_parts: int
) -> None:
    first = run(config(batch_size=8), store=store)
    first.trainer.run.num_parts = 2
    first.trainer.train()
    kept = load_checkpoint(max(store, key=lambda item: item.step).path)
    again = run(config(batch_size=batch_size), store=store, resume=kept)
    assert again.trainer.run.num_parts == num_parts


def test_what_a_step_draws_does_not_depend_on_how_often_it_was_begun(
    run: Any, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that finds out in the middle equals one that knew it from there on."""
    given = config(batch_size=8, dropout=0.3, eval_interval=100)
    surprised, knowing = run(given), run(given)
    honest = NextToken.loss
    for told in (surprised, knowing):
        torch.manual_seed(5)
        told.trainer.parts.model.train()
        if told is knowing:
            told.trainer.run.num_parts = 2
        num_calls = 0

        def loss(self: Any, model: Any, batch: Any, *, told: Any = told) -> Any:
            nonlocal num_calls
            found = honest(self, model, batch)
            num_calls += 1
            if told is surprised and num_calls == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return found

        monkeypatch.setattr(NextToken, "loss", loss)
        told.trainer.update()
    for one, other in zip(
        surprised.trainer.parts.model.parameters(), knowing.trainer.parts.model.parameters(), strict=True
    ):
        assert torch.equal(one, other)


def test_where_not_even_a_row_fits_the_run_ends_with_advice(run: Any, config: Any, too_large: Any) -> None:
    too_large(0)
    told = run(config(batch_size=4))
    with pytest.raises(OutOfMemory, match="a smaller batch_size or block_size needs less"):
        told.trainer.train()
    assert told.trainer.run.num_parts == 4


def test_another_error_of_torch_is_no_want_of_memory(run: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(NextToken, "loss", fail)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        run(config()).trainer.train()
