"""Direct preference optimization leads where it says, by the paper's formula written out on transformers' models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from core import objectives
from core.losses import UNLEARNT
from core.sources.corpus import Corpus
from core.tokens.batches import Batch
from tests.unit.core.conftest import Run

BETA = 0.3
ROWS = [
    {"prompt": f"{a} plus {b}?", "chosen": f" It is {a + b}", "rejected": f" QUESTION {a}"}
    for a in range(4)
    for b in range(4)
]

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def preferring(config: Any, corpus: Callable[..., Corpus], kind: str) -> Callable[..., Run]:
    """A run that learns preferences, without dropout."""

    def preferring(**given: Any) -> Run:
        lora = {"lora_dropout": 0} if "lora" in kind else {}
        few = {"training_steps": 12, "eval_interval": 12, "checkpoint_interval": 12, "learning_rate": 3e-3}
        given_config = config(kind, block_size=32, batch_size=7, dropout=0, dpo_beta=BETA, **few, **lora)
        return Run(given_config, corpus(ROWS), **given)

    return preferring


def training_pairs(run: Run) -> list[Batch]:
    """All of them, once."""
    data = run.trainer.parts.data
    return [data.training(index) for index in range(int(np.ceil(data.per_epoch())))]


def said_margins(run: Run, batches: list[Batch], monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """Losses (of each batch) and margins (of all pairs) as the run itself has them."""
    margins: list[Tensor] = []
    honest = objectives.preference_loss

    def kept(*given: Any) -> tuple[Tensor, Tensor]:
        found = honest(*given)
        margins.append(found[1])
        return found

    parts = run.trainer.parts
    with monkeypatch.context() as patched, torch.no_grad():
        patched.setattr(objectives, "preference_loss", kept)
        losses = [parts.objective.loss(parts.model.eval(), batch) for batch in batches]
    return torch.stack(losses), torch.cat(margins)


def log_probability(model: nn.Module, batch: Batch) -> Tensor:
    """Of the answer in each row, shape (B,): written out, token by token."""
    log_probabilities_BTV = torch.log_softmax(model(input_ids=batch.ids_BT).logits, dim=-1)
    is_answer_BT = batch.targets_BT != UNLEARNT
    targets_BT1 = torch.where(is_answer_BT, batch.targets_BT, 0)[..., None]
    return (log_probabilities_BTV.gather(-1, targets_BT1)[..., 0] * is_answer_BT).sum(1)


def margins_by_formula(learning: nn.Module, base: nn.Module, batch: Batch) -> Tensor:
    """β (log π(better)/π₀(better) − log π(worse)/π₀(worse)), shape (B / 2,)."""
    with torch.no_grad():
        theirs_B = log_probability(base, batch)
    better, worse = (log_probability(learning, batch) - theirs_B).view(2, -1)
    return BETA * (better - worse)


def as_transformers_has_it(base: Path, checkpoint: Path | None, kind: str) -> nn.Module:
    if checkpoint is None:
        return AutoModelForCausalLM.from_pretrained(base).eval()
    if "lora" not in kind:
        return AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), checkpoint).eval()


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_lora", "llama", "llama_lora"])
def test_training_raises_the_margins_and_they_are_the_papers(
    preferring: Callable[..., Run], store: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = preferring(store=store)
    base = Path(run.trainer.parts.config.base_model)
    batches, untouched = training_pairs(run), as_transformers_has_it(base, None, kind)
    at_first, margins_at_first = said_margins(run, batches, monkeypatch)
    torch.testing.assert_close(at_first, torch.full_like(at_first, np.log(2)))
    torch.testing.assert_close(margins_at_first, torch.zeros_like(margins_at_first), rtol=0, atol=1e-5)

    run.trainer.train()
    losses, margins = said_margins(run, batches, monkeypatch)
    assert margins.mean() > max(0.1, margins_at_first.mean().item())
    assert (margins > 0).all(), "each of the pairs was learnt"
    assert losses.mean() < at_first.mean()

    [saved] = store
    learnt = as_transformers_has_it(base, saved.path, kind)
    with torch.no_grad():
        expected = [margins_by_formula(learnt, untouched, batch) for batch in batches]
    torch.testing.assert_close(margins, torch.cat(expected), rtol=1e-4, atol=1e-4)
    by_formula = torch.stack([-torch.log(1 / (1 + torch.exp(-some))).mean() for some in expected])
    torch.testing.assert_close(losses, by_formula, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_first_step_goes_where_the_formula_points(preferring: Callable[..., Run], kind: str) -> None:
    """Every run begins with a loss of log 2, so it is the gradient that tells."""
    run = preferring()
    parts = run.trainer.parts
    theirs = as_transformers_has_it(Path(parts.config.base_model), None, kind)
    base = as_transformers_has_it(Path(parts.config.base_model), None, kind)
    batch = parts.data.training(0)
    ours_loss = parts.objective.loss(parts.model.eval(), batch)
    ours_loss.backward()
    expected = -nn.functional.logsigmoid(margins_by_formula(theirs, base, batch)).mean()
    expected.backward()
    torch.testing.assert_close(ours_loss, expected)
    found = dict(parts.model.network.named_parameters())  # type: ignore[attr-defined]
    for name, parameter in theirs.named_parameters():
        largest = parameter.grad.abs().max().item()
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-4, atol=1e-5 * largest)
