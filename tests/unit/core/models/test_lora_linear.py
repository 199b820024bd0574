"""A frozen layer and its adapter in one go are what peft makes of them, in every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.models import lora_linear
from core.models.causal_lm import CausalLM
from core.models.lora_linear import adapted
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT

SCALE = 2.0
Compute = Callable[..., Tensor]


def parts() -> list[Tensor]:
    """x, W, bias, A, B."""
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 64, 48), (96, 48), (96,), (4, 48), (96, 4)]
    x, weight, bias, a, b = (torch.randn(shape, generator=generator) / 4 for shape in shapes)
    return [x.requires_grad_(), weight, bias, a.requires_grad_(), b.requires_grad_()]


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """As peft writes it."""
    linear = nn.functional.linear
    return linear(x, weight, bias) + linear(linear(x, a), b) * scale


def found_of(compute: Compute, has_bias: bool = True) -> list[Tensor]:
    """What comes out, and the gradients."""
    x, weight, bias, a, b = parts()
    y = compute(x, weight, bias if has_bias else None, a, b, SCALE)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.float(), *(part.grad for part in (x, a, b) if part.grad is not None)]


@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
def test_it_is_the_plain_one_to_rounding(has_bias: bool) -> None:
    found, expected = found_of(adapted, has_bias), found_of(plain, has_bias)
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert one.is_contiguous()


def test_in_short_numbers_it_is_as_near_to_the_truth_as_the_plain_one() -> None:
    """A product that is added before it is rounded is nearer, if anything."""
    truth = found_of(plain)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = found_of(adapted), found_of(plain)
    for one, other, true in zip(ours, theirs, truth, strict=True):
        assert one.dtype == other.dtype
        assert (one - true).norm() <= 1.1 * (other - true).norm()


def test_what_needs_no_gradient_gets_none() -> None:
    x, *others = parts()
    adapted(x.detach(), *others, SCALE).sum().backward()
    assert x.grad is None
    assert [part.grad is None for part in others] == [True, True, False, False]


def of_model(model: Any, ids_BT: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss = model.loss(ids_BT, ids_BT.roll(-1, 1))
    loss.backward()
    return [loss.detach(), *(part.grad.clone() for part in model.parameters() if part.grad is not None)]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_has_the_same_loss_and_gradients(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(make_model_folder(tmp_path / family, TEXT, family), use_lora=True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            # They begin as zeros, and then those before them learn nothing.
            torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(1))
    ids_BT = torch.randint(0, model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(1))
    calls: list[Any] = []
    monkeypatch.setattr(lora_linear, "adapted", lambda *given: calls.append(given) or adapted(*given))
    ours = of_model(model, ids_BT)
    assert calls
    monkeypatch.setattr(lora_linear, "adapted", plain)
    theirs = of_model(model, ids_BT)
    assert len(ours) == len(theirs) > 2
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("changed", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_what_it_does_not_know_is_left_to_peft(
    tmp_path: Path, changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = CausalLM(make_model_folder(tmp_path / "llama", TEXT, "llama"), use_lora=True, **changed).train()
    monkeypatch.setattr(lora_linear, "adapted", None)
    assert torch.isfinite(model.loss(torch.ones(1, 8, dtype=torch.long), torch.ones(1, 8, dtype=torch.long)))


def test_without_adapters_it_is_the_base(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "llama", TEXT, "llama")
    model = CausalLM(folder, use_lora=True)
    nn.init.ones_(next(part for name, part in model.named_parameters() if "lora_B" in name))
    ids_BT = torch.arange(8)[None]
    base = CausalLM(folder).loss(ids_BT, ids_BT)
    with model.without_adapters():
        assert torch.equal(model.loss(ids_BT, ids_BT), base)
    assert not torch.equal(model.loss(ids_BT, ids_BT), base)


@pytest.mark.parametrize("kind", ["gpt2_lora", "llama_lora"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_resumed_run_is_the_one_never_stopped(check_resume: Any, config: Any, kind: str, precision: str) -> None:
    check_resume(config(kind, precision=precision, lora_dropout=0.0))
