"""Examples that share a row teach exactly what they teach one by one: the same loss, the same gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from core.losses import UNLEARNT, num_learnt
from core.models import LanguageModel
from core.sources.corpus import Corpus
from core.tokens.batches import Batch
from tests.unit.core.conftest import Run

LOSS_NATS = 1e-6
"""What two ways to add up a loss may differ by, in fp32."""

OF_THE_LARGEST = 1e-5
"""And two ways to add up a gradient, as a part of its largest entry."""

ROWS = [
    {"prompt": f"{a} plus {b}" + "?" * (a % 3), "completion": " " + "one" * (1 + a % 2) + f" {a + b}"}
    for a in range(6)
    for b in range(6)
]


def one_by_one(batch: Batch) -> Iterator[Batch]:
    """The examples of a packed batch, each in a row of its own, without padding."""
    assert batch.segments_BT is not None
    for ids_T, targets_T, segments_T in zip(batch.ids_BT, batch.targets_BT, batch.segments_BT, strict=True):
        for number in segments_T.unique():
            here = segments_T == number
            targets_BT = targets_T[here][None]
            if learnt := num_learnt(targets_BT):
                yield Batch(ids_T[here][None], targets_BT, None, learnt)


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("kind", ["from_scratch", "from_scratch_lora", "modern", "gpt2", "llama", "llama_lora"])
def test_packed_examples_teach_what_each_teaches_alone(config: Any, corpus: Callable[..., Corpus], kind: str) -> None:
    lora = {"lora_dropout": 0} if "lora" in kind else {}
    parts = Run(config(kind, block_size=64, batch_size=3, dropout=0, **lora), corpus(ROWS)).trainer.parts
    model, objective, batch = parts.model.train(), parts.objective, parts.data.training(0)
    alone = list(one_by_one(batch))
    assert len(alone) > 2 * len(batch.ids_BT), "rows are packed"
    assert sum(some.num_targets for some in alone) == batch.num_targets
    assert (batch.targets_BT == UNLEARNT).any()

    together = objective.loss(model, batch)
    together.backward()
    expected = gradients(model)
    total = torch.zeros(())
    for some in alone:
        share = objective.loss(model, some) * (some.num_targets / batch.num_targets)
        share.backward()
        total += share.detach()
    found = gradients(model)

    assert together.item() == pytest.approx(total.item(), abs=LOSS_NATS)
    assert found.keys() == expected.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(gradient.any() for gradient in expected.values())
    for name, gradient in expected.items():
        near = OF_THE_LARGEST * max(gradient.abs().max().item(), 1e-3)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=near, msg=lambda said, n=name: f"{n}: {said}")
