from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from core.optimization.fused_adamw import FusedAdamW
from tests.conftest import PROJECT


@pytest.fixture
def num_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


TRAINS = """
import sys, torch
from core.config import TrainingConfig
from core.parts import build_optimizer
model = torch.nn.Linear(2, 2)
optimizer = build_optimizer(TrainingConfig(source="tale.md"), model)
model(torch.ones(2)).sum().backward()
optimizer.step()
optimizer.zero_grad()
assert "torch._dynamo" not in sys.modules
"""


@pytest.mark.parametrize("given", [{}, {"weight_decay": 0.0}])
def test_its_numbers_are_those_of_torch_to_the_last_bit(given: dict[str, Any]) -> None:
    ends = []
    for kind in (partial(torch.optim.AdamW, fused=True), FusedAdamW):
        weights = [torch.linspace(-1, 1, 7).requires_grad_(), torch.ones(2, 3, requires_grad=True)]
        optimizer = kind(weights, lr=0.01, betas=(0.9, 0.99), **given)
        for step in range(5):
            optimizer.zero_grad()
            sum((weight.sin() * (step + 1)).sum() for weight in weights).backward()
            optimizer.step()
        ends.append([*weights, *(optimizer.state[weight]["exp_avg_sq"] for weight in weights)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))


def test_it_is_the_plain_one_but_for_rounding_and_the_same_with_any_number_of_threads(
    num_threads: Callable[[int], None],
) -> None:
    """One update of 1e-2 rounds at 1e-9 times the weight's size: five of them stay within a few of these."""
    ends = []
    for kind, threads in ((torch.optim.AdamW, 1), (FusedAdamW, 1), (FusedAdamW, 2)):
        num_threads(threads)
        # Long enough to be shared among threads, and of a length that no vector divides.
        weight = torch.linspace(-1, 1, 200_003).requires_grad_()
        optimizer = kind([weight], lr=0.01, betas=(0.9, 0.99))
        for step in range(5):
            optimizer.zero_grad()
            (weight.sin() * (step + 1)).sum().backward()
            optimizer.step()
        ends.append(weight.detach())
    plain, alone, shared = ends
    torch.testing.assert_close(alone, plain, rtol=1e-6, atol=1e-7)
    assert torch.equal(alone, shared)


def test_whoever_trains_from_scratch_does_not_wait_for_a_compiler() -> None:
    subprocess.run([sys.executable, "-c", TRAINS], cwd=PROJECT, check=True)
