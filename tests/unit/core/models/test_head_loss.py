"""The loss made without all logits is the plain one, on every model, and in a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from core.events import Event, Step
from core.losses import UNLEARNT, next_token_loss, num_right
from core.models import head_loss
from core.models.causal_lm import CausalLM
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import KINDS, TEXT
from tests.unit.core.copies import Copies


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few logits there are, in several stretches."""
    monkeypatch.setattr(head_loss, "WORTHWHILE_LOGITS", 1)
    monkeypatch.setattr(head_loss, "LOGITS_AT_ONCE", 2000)


def given(num_tokens: int = 37, width: int = 24, vocab_size: int = 301) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x_NC = torch.randn(num_tokens, width, generator=generator)
    weight_VC = torch.randn(vocab_size, width, generator=generator) / 3
    targets_N = torch.randint(0, vocab_size, (num_tokens,), generator=generator)
    targets_N[3:11] = UNLEARNT
    return x_NC, weight_VC, torch.randn(vocab_size, generator=generator), targets_N


def found_of(compute: Any, *weights: Tensor | None) -> list[Tensor]:
    """The loss, and the gradient of each weight."""
    own = [None if weight is None else weight.clone().requires_grad_() for weight in weights]
    loss = compute(*own)
    # A share of a batch counts as much.
    (loss * 0.25).backward()
    return [loss, *(weight.grad for weight in own if weight is not None)]


def plain(x_NC: Tensor, weight_VC: Tensor, bias_V: Tensor | None, targets_N: Tensor) -> Tensor:
    return next_token_loss(torch.nn.functional.linear(x_NC, weight_VC, bias_V)[None], targets_N[None])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
def test_it_is_the_plain_one_to_rounding(has_bias: bool) -> None:
    x_NC, weight_VC, bias_V, targets_N = given()
    weights = (x_NC, weight_VC, bias_V if has_bias else None)
    ours = found_of(lambda *own: head_loss.loss_of_head(*own, targets_N), *weights)
    theirs = found_of(lambda *own: plain(*own, targets_N), *weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.usefixtures("always")
def test_in_short_numbers_it_is_as_near_to_the_truth_as_the_plain_one() -> None:
    """bf16 keeps eight bits: how far each is from float32 is compared, with a tenth to spare."""
    *weights, targets_N = given(256, 64, 1000)
    truth = found_of(lambda *own: plain(*own, targets_N), *weights)
    with torch.autocast("cpu", torch.bfloat16):
        ours = found_of(lambda *own: head_loss.loss_of_head(*own, targets_N), *weights)
        theirs = found_of(lambda *own: plain(*own, targets_N), *weights)
    for one, other, true in zip(ours, theirs, truth, strict=True):
        assert (one - true).norm() <= 1.1 * (other - true).norm() + 1e-6 * true.norm()


def test_what_is_frozen_gets_no_gradient() -> None:
    x_NC, weight_VC, _, targets_N = given()
    x_NC.requires_grad_()
    head_loss.loss_of_head(x_NC, weight_VC, None, targets_N).backward()
    assert x_NC.grad is not None
    assert weight_VC.grad is None


def gradients(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
            parameter.grad = None


@torch.inference_mode()
def check_measure(model: Any, *given: Tensor | None) -> None:
    """An evaluation's loss and right tokens."""
    loss, right = model.measure(*given)
    logits_BTV, expected = model(*given)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    assert int(right) == int(num_right(logits_BTV, given[1]))


def check_on(model: Any) -> None:
    """Loss and gradients of rows that two examples share."""
    ids_BT = torch.randint(0, model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    targets_BT = ids_BT.roll(-1, 1)
    targets_BT[:, 5:9] = UNLEARNT
    segments_BT = (torch.arange(16) > 8).long().expand(2, 16)
    for segments in (None, segments_BT) if model.supports_segments else (None,):
        loss = model.loss(ids_BT, targets_BT, segments)
        loss.backward()
        ours = dict(gradients(model))
        expected = model(ids_BT, targets_BT, segments)[1]
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        theirs = dict(gradients(model))
        assert ours.keys() == theirs.keys()
        check_measure(model, ids_BT, targets_BT, segments)
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6 * gradient.abs().max().item() + 1e-9)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_model_has_the_same_loss_and_gradients(run: Any, config: Any, kind: str) -> None:
    model = run(config(kind)).trainer.parts.model.eval()
    assert model.before_head(torch.zeros(1, 3, dtype=torch.long)) is not None
    check_on(model)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_the_same_loss_and_gradients(tmp_path: Path, family: str) -> None:
    model = CausalLM(make_model_folder(tmp_path / family, TEXT, family)).eval()
    # Gemma 2 bounds its logits.
    assert model.has_plain_head == (family != "gemma2")
    check_on(model)


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logits_soft_cap", "logit_scale"])
def test_a_head_that_is_said_to_do_more_is_not_taken_for_plain(tmp_path: Path, name: str) -> None:
    """A bound of 30 bends logits of fresh weights by less than rounding does."""
    model = CausalLM(make_model_folder(tmp_path / "llama", TEXT, "llama")).eval()
    setattr(model.network.config, name, 30.0)
    assert not model.has_plain_head


@pytest.mark.usefixtures("always")
def test_neither_training_nor_an_evaluation_holds_all_logits() -> None:
    x_NC, weight_VC, _, targets_N = given()
    x_NC.requires_grad_()
    with Copies() as copies:
        head_loss.loss_of_head(x_NC, weight_VC, None, targets_N).backward()
        head_loss.measure_of_head(x_NC.detach(), weight_VC, None, targets_N)
    assert copies.largest <= 4 * max(2000, weight_VC.numel())
    assert copies.largest < 4 * len(x_NC) * len(weight_VC)


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Step)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_hundred_steps_are_those_of_the_plain_loss(
    run: Any, config: Any, request: pytest.FixtureRequest, precision: str
) -> None:
    """In fp32 they part by rounding alone, which two hundred steps make a thousandth of a nat of at most."""
    settings = config("modern", training_steps=200, eval_interval=200, precision=precision)
    theirs = run(settings)
    theirs.trainer.train()
    request.getfixturevalue("always")
    ours = run(settings)
    ours.trainer.train()
    one, other = losses(ours.events), losses(theirs.events)
    assert one != other
    assert len(one) == len(other) == 200
    most = 1e-3 if precision == "fp32" else 0.05
    assert max(abs(a - b) for a, b in zip(one, other, strict=True)) < most


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("kind", ["modern", "gpt2", "llama_lora"])
def test_a_resumed_run_is_the_one_never_stopped(check_resume: Any, config: Any, kind: str) -> None:
    check_resume(config(kind, precision="bf16"))
