"""What is only read teaches nothing: its logits get no gradient at all, in rows of every kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from core.losses import UNLEARNT
from core.objectives import NextToken
from core.sources.corpus import Corpus
from core.tokens.batches import Batch
from tests.unit.core.conftest import Run

COMPLETIONS = [{"prompt": f"{n} plus {n + 1}?", "completion": f" {2 * n + 1}."} for n in range(9)]
SILENCED = [
    {
        "messages": [
            {"role": "user", "content": f"{n} plus 1?"},
            {"role": "assistant", "content": "wrong", "weight": 0},
            {"role": "user", "content": "Again."},
            {"role": "assistant", "content": f"{n + 1}."},
        ]
    }
    for n in range(9)
]
ROWS = pytest.mark.parametrize("rows", [COMPLETIONS, SILENCED], ids=["completions", "silenced_turns"])
KINDS = pytest.mark.parametrize("kind", ["from_scratch", "modern", "gpt2", "llama"])

Write = Callable[..., Corpus]


def first_batch(config: Any, corpus: Corpus, kind: str, **given: Any) -> tuple[Run, Batch]:
    told = Run(config(kind, block_size=64, batch_size=3, dropout=0, **given), corpus)
    return told, told.trainer.parts.data.training(0)


def gradient_of_logits(run: Run, batch: Batch) -> Tensor:
    """Of the loss that the run makes smaller, shape (B, T, V)."""
    seen: list[Tensor] = []

    def keep(_module: Any, _given: Any, said: tuple[Tensor, Tensor]) -> None:
        said[0].retain_grad()
        seen.append(said[0])

    model, objective = run.trainer.parts.model, run.trainer.parts.objective
    handle = model.register_forward_hook(keep)
    objective.loss(model, batch).backward()
    handle.remove()
    [logits_BTV] = seen
    assert logits_BTV.grad is not None
    return logits_BTV.grad


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "alone"])
@ROWS
@KINDS
def test_tokens_that_are_only_read_get_no_gradient(
    config: Any, corpus: Write, kind: str, rows: list[Any], packing: bool
) -> None:
    run, batch = first_batch(config, corpus(rows), kind, packing=packing)
    assert isinstance(run.trainer.parts.objective, NextToken)
    gradient_BTV = gradient_of_logits(run, batch)
    is_learnt_BT = batch.targets_BT != UNLEARNT
    assert 0 < is_learnt_BT.sum() == batch.num_targets < is_learnt_BT.numel(), "some are learnt and some are not"
    assert (gradient_BTV[~is_learnt_BT] == 0).all(), "to the last bit"
    assert (gradient_BTV[is_learnt_BT] != 0).any(-1).all(), "each token that is learnt pulls"


@ROWS
def test_a_silenced_answer_is_no_target_and_is_read(config: Any, corpus: Write, rows: list[Any]) -> None:
    run, batch = first_batch(config, corpus(rows), "from_scratch", packing=False)
    decode = run.trainer.parts.tokenizer.decode
    for ids_T, targets_T in zip(batch.ids_BT, batch.targets_BT, strict=True):
        learnt = decode(targets_T[targets_T != UNLEARNT].tolist())
        assert "wrong" not in learnt
        assert "plus" not in learnt
        assert "plus" in decode(ids_T.tolist())
        assert ("wrong" in decode(ids_T.tolist())) == (rows is SILENCED)


@KINDS
def test_what_follows_the_last_answer_changes_nothing(config: Any, corpus: Write, kind: str) -> None:
    """Neither padding nor what a person said last: no token before them sees them, and they are no targets."""
    run, batch = first_batch(config, corpus(COMPLETIONS), kind, packing=False)
    positions_T = torch.arange(batch.ids_BT.shape[1])
    # A target is one place ahead of the input that it is.
    last_B = torch.where(batch.targets_BT != UNLEARNT, positions_T, 0).amax(1)
    after_BT = positions_T > last_B[:, None]
    assert after_BT.any()
    other = replace(batch, ids_BT=torch.where(after_BT, (batch.ids_BT + 1) % 7, batch.ids_BT))
    before_BT = positions_T < last_B[:, None]
    prompts = replace(batch, ids_BT=torch.where(before_BT, (batch.ids_BT + 1) % 7, batch.ids_BT))
    losses, gradients = zip(*(loss_and_gradients(run, some) for some in (batch, other, prompts)), strict=True)
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    assert abs(losses[2] - losses[0]) > 1e-5, "what comes before an answer is read"


def loss_and_gradients(run: Run, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    model = run.trainer.parts.model
    model.zero_grad()
    loss = run.trainer.parts.objective.loss(model, batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
