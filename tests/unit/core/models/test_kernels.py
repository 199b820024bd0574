"""What stands in for transformers' own parts computes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.activations import ACT2FN

from core.models.pretrained import lay_out_causal_lm, load_causal_lm

IDS_BT = torch.arange(24)[None]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast"])
def test_gelu_is_the_same_function_both_ways(name: str) -> None:
    """Eight operations round eight times; at most a few units of float32's last place at the size of the input."""
    ours, theirs = nn.GELU(approximate="tanh"), ACT2FN[name]
    one, other = (torch.linspace(-8, 8, 10_001).requires_grad_() for _ in range(2))
    torch.testing.assert_close(ours(one), theirs(other), rtol=1e-6, atol=2e-6)
    ours(one).sum().backward()
    theirs(other).sum().backward()
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=5e-6)


def test_a_gpt2_has_it_and_says_what_it_said(gpt2_folder: Path) -> None:
    ours, theirs = load_causal_lm(gpt2_folder).eval(), AutoModelForCausalLM.from_pretrained(gpt2_folder).eval()
    assert all(isinstance(block.mlp.act, nn.GELU) for block in ours.transformer.h)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    with torch.inference_mode():
        torch.testing.assert_close(ours(IDS_BT).logits, theirs(IDS_BT).logits, rtol=1e-5, atol=1e-6)


def test_what_is_foretold_of_has_it_too(gpt2_folder: Path) -> None:
    assert all(isinstance(block.mlp.act, nn.GELU) for block in lay_out_causal_lm(gpt2_folder).transformer.h)
