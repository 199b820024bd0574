from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from core.optimization.plain_adamw import PlainAdamW
from tests.conftest import PROJECT

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


@pytest.mark.parametrize("given", [{}, {"foreach": True}, {"foreach": False, "weight_decay": 0.0}])
def test_its_numbers_are_those_of_torch_to_the_last_bit(given: dict[str, Any]) -> None:
    ends = []
    for kind in (torch.optim.AdamW, PlainAdamW):
        weights = [torch.linspace(-1, 1, 7).requires_grad_(), torch.ones(2, 3, requires_grad=True)]
        optimizer = kind(weights, lr=0.01, betas=(0.9, 0.99), **given)
        for step in range(5):
            optimizer.zero_grad()
            sum((weight.sin() * (step + 1)).sum() for weight in weights).backward()
            optimizer.step()
        ends.append([*weights, *(optimizer.state[weight]["exp_avg_sq"] for weight in weights)])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*ends, strict=True))


def test_whoever_trains_from_scratch_does_not_wait_for_a_compiler() -> None:
    subprocess.run([sys.executable, "-c", TRAINS], cwd=PROJECT, check=True)
