"""Attention in products, where that is the sooner way, says what torch's kernel says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from core.models import attention
from core.models.attention import attend_in_products, is_short, segment_mask
from core.models.causal_lm import CausalLM
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT

SEGMENTS_BT = (torch.arange(48) // 20).expand(2, 48)
MASKS = {"causal": None, "segments": segment_mask(SEGMENTS_BT)}


def parts(num_tokens: int = 48, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, num_tokens, 16, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def found_of(compute: Any, dtype: torch.dtype) -> list[Tensor]:
    given = parts(dtype=dtype)
    mixed = compute(*given)
    (mixed.float() * torch.linspace(-1, 1, mixed.numel()).view_as(mixed)).sum().backward()
    return [mixed.float(), *(part.grad.float() for part in given)]


@pytest.mark.parametrize("kind", list(MASKS))
def test_it_is_torchs_own_but_for_rounding(kind: str) -> None:
    """Against float32: at most two and a half times as far as torch's kernel, which keeps its scores in float32."""
    mask = MASKS[kind]

    def theirs(*given: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*given, attn_mask=mask, is_causal=mask is None)

    truth = found_of(theirs, torch.float32)
    kernels = found_of(theirs, torch.bfloat16)
    ours = found_of(lambda *given: attend_in_products(*given, mask), torch.bfloat16)
    for one, other, true in zip(ours, kernels, truth, strict=True):
        assert (one - true).norm() <= 2.5 * (other - true).norm()
        assert (one - true).norm() <= 0.02 * true.norm()


def test_a_scale_and_a_mask_of_numbers_are_taken() -> None:
    given = parts()
    numbers = torch.zeros(2, 1, 48, 48).masked_fill(~MASKS["segments"], -torch.inf)  # type: ignore[operator]
    expected = F.scaled_dot_product_attention(*(part.float() for part in given), attn_mask=numbers, scale=0.5)
    found = attend_in_products(*given, numbers, scale=0.5).float()
    assert (found - expected).norm() <= 0.02 * expected.norm()


def test_it_is_for_training_in_short_numbers_on_short_rows_alone() -> None:
    q, k, _ = parts()
    assert is_short(q, k)
    assert not is_short(q[:, :, -1:], k)
    assert not is_short(*parts(513)[:2])
    assert not is_short(*parts(dtype=torch.float32)[:2])
    assert not is_short(q.detach(), k)
    with torch.no_grad():
        assert not is_short(q, k)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_short(*parts(dtype=torch.float32)[:2])


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"bloom", "gemma2"}))
def test_every_family_takes_it_and_learns_the_same(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within bf16's rounding; whole rows, and rows that examples share where the family can tell them apart."""
    model = CausalLM(make_model_folder(tmp_path / family, TEXT, family)).eval()
    ids_BT = torch.randint(0, model.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))
    calls: list[Any] = []
    monkeypatch.setattr(
        "core.models.kernels.attend_in_products",
        lambda *given, **more: calls.append(given) or attend_in_products(*given, **more),
    )
    for segments in (None, SEGMENTS_BT) if model.supports_segments else (None,):
        losses = []
        for longest in (512, 0):
            monkeypatch.setattr(attention, "SHORT", longest)
            calls.clear()
            with torch.autocast("cpu", torch.bfloat16):
                losses.append(model.loss(ids_BT, ids_BT.roll(-1, 1), segments))
            assert bool(calls) == bool(longest)
        torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2", "llama_lora"])
def test_a_resumed_run_is_the_one_never_stopped(check_resume: Any, config: Any, kind: str) -> None:
    """With its dropout, whose random numbers are drawn otherwise than the kernel's."""
    check_resume(config(kind, precision="bf16", dropout=0.1))
