"""Moments of every kind: taken out by name, and put back only if they are what the optimizer would have made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import CheckpointMismatch
from core.optimization.moments import optimizer_state, restore_optimizer
from core.optimization.muon import Muon
from core.optimization.updates import Together
from tests.unit.core.copies import Copies

Saved = dict[str, Any]


class EightBits(torch.optim.Optimizer):
    """Keeps moments as bitsandbytes does, as far as can be seen from outside; stands for it where there is no GPU."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})
        self.qmap = torch.linspace(-1, 1, 256)

    def init_state(self, group: Any, parameter: torch.Tensor, number: int, index: int) -> None:
        assert self.param_groups[number]["params"][index] is parameter
        state = self.state[parameter]
        state["step"] = 0
        if parameter.numel() < 8:
            state["state1"] = torch.zeros_like(parameter)
            return
        state["state1"] = torch.zeros_like(parameter, dtype=torch.uint8)
        state["qmap1"] = self.qmap
        state["absmax1"] = torch.zeros(-(-parameter.numel() // 4))

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for number, group in enumerate(self.param_groups):
            for index, parameter in enumerate(group["params"]):
                if not self.state[parameter]:
                    self.init_state(group, parameter, number, index)
                state = self.state[parameter]
                state["step"] += 1
                if state["state1"].dtype == torch.uint8:
                    scale = state["absmax1"].repeat_interleave(4)[: parameter.numel()].view_as(parameter)
                    moment = self.qmap[state["state1"].long()] * scale + parameter.grad
                    padded = nn.functional.pad(moment.flatten(), (0, -parameter.numel() % 4))
                    state["absmax1"].copy_(padded.view(-1, 4).abs().amax(1))
                    scale = state["absmax1"].repeat_interleave(4)[: parameter.numel()].view_as(parameter)
                    state["state1"].copy_(((moment / scale + 1) * 127.5).round())
                else:
                    moment = state["state1"].mul_(0.5).add_(parameter.grad)
                parameter.sub_(moment, alpha=group["lr"] / state["step"])


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def muon(model: nn.Module) -> torch.optim.Optimizer:
    matrix, vector = model.parameters()
    return Together([Muon([matrix], lr=0.1, weight_decay=0.0), torch.optim.AdamW([vector], lr=0.1)])


def eight_bits(model: nn.Module) -> torch.optim.Optimizer:
    return EightBits(model.parameters())


KINDS = {"adamw": adamw, "muon": muon, "eight_bits": eight_bits}
Build = Callable[[nn.Module], torch.optim.Optimizer]


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, 3)


def update(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()


def saved(optimizer: torch.optim.Optimizer, model: nn.Module) -> Saved:
    moments, settings = optimizer_state(optimizer, model)
    return {"moments": {name: value.clone() for name, value in moments.items()}, "settings": settings}


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_moments_of_every_kind_go_on_to_the_last_bit(build: Build) -> None:
    whole, part = model_of(), model_of()
    update(whole, build(whole), range(6))
    optimizer = build(part)
    update(part, optimizer, range(3))
    kept = saved(optimizer, part)
    again = build(part)
    restore_optimizer(again, part, kept)
    update(part, again, range(3, 6))
    assert all(map(torch.equal, part.parameters(), whole.parameters()))


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_without_its_moments_a_run_would_go_elsewhere(build: Build) -> None:
    whole, part = model_of(), model_of()
    update(whole, build(whole), range(6))
    update(part, build(part), range(3))
    update(part, build(part), range(3, 6))
    assert not all(map(torch.equal, part.parameters(), whole.parameters()))


def test_names_tell_what_is_kept_of_which_parameter() -> None:
    kept = {}
    for name, build in KINDS.items():
        model = model_of()
        optimizer = build(model)
        update(model, optimizer, range(1))
        kept[name] = {key: tuple(value.shape) for key, value in saved(optimizer, model)["moments"].items()}
    adamw = {"step": (), "exp_avg": (3,), "exp_avg_sq": (3,)}
    assert kept["muon"] == {
        "weight::momentum_buffer": (3, 6),
        **{f"bias::{moment}": shape for moment, shape in adamw.items()},
    }
    assert set(kept["adamw"]) == {f"{name}::{moment}" for name in ("weight", "bias") for moment in adamw}
    assert kept["eight_bits"] == {
        **{"weight::step": (), "weight::state1": (3, 6), "weight::absmax1": (5,)},
        **{"bias::step": (), "bias::state1": (3,)},
    }, "what its bytes stand for is not kept"


MISFITS: dict[str, tuple[str, dict[str, torch.Tensor | None]]] = {
    "AdamW's for Muon": ("muon", {"weight::momentum_buffer": None, "weight::exp_avg": torch.zeros(3, 6)}),
    "one too many for Muon": ("muon", {"weight::step": torch.tensor(1.0)}),
    "another shape for Muon": ("muon", {"weight::momentum_buffer": torch.zeros(6, 3)}),
    "whole numbers for Muon": ("muon", {"weight::momentum_buffer": torch.zeros(3, 6, dtype=torch.int64)}),
    "Muon's for AdamW": (
        "adamw",
        {f"weight::{moment}": None for moment in ("step", "exp_avg", "exp_avg_sq")}
        | {"weight::momentum_buffer": torch.zeros(3, 6)},
    ),
    "too few blocks": ("eight_bits", {"weight::absmax1": torch.zeros(4)}),
    "another type of bytes": ("eight_bits", {"weight::state1": torch.zeros(3, 6)}),
    "another shape of bytes": ("eight_bits", {"weight::state1": torch.zeros(18, dtype=torch.uint8)}),
    "a part missing": ("eight_bits", {"weight::absmax1": None}),
    "a part too many": ("eight_bits", {"bias::absmax1": torch.zeros(1)}),
    "a step before the first": ("eight_bits", {"weight::step": torch.tensor(0)}),
    "a step in parts": ("eight_bits", {"weight::step": torch.tensor(1.5)}),
}


@pytest.mark.parametrize("what", list(MISFITS))
def test_moments_that_this_optimizer_would_not_have_made_are_one_sentence(what: str) -> None:
    kind, changes = MISFITS[what]
    model = model_of()
    optimizer = KINDS[kind](model)
    update(model, optimizer, range(1))
    kept = saved(optimizer, model)
    for name, value in changes.items():
        if value is None:
            del kept["moments"][name]
        else:
            kept["moments"][name] = value
    with pytest.raises(CheckpointMismatch, match="optimizer state does not fit this model") as refused:
        restore_optimizer(KINDS[kind](model), model, kept)
    assert "\n" not in refused.value.message


def test_a_checkpoint_of_another_kind_of_optimizer_is_refused() -> None:
    model = model_of()
    optimizer = adamw(model)
    update(model, optimizer, range(1))
    with pytest.raises(CheckpointMismatch, match="optimizer"):
        restore_optimizer(muon(model), model, saved(optimizer, model))


@pytest.mark.parametrize("build", [adamw, muon])
def test_moments_are_copied_once_and_never_shared_with_the_file_they_come_from(build: Build) -> None:
    model = model_of()
    optimizer = build(model)
    update(model, optimizer, range(1))
    kept = saved(optimizer, model)
    again = build(model)
    with Copies() as copies:
        restore_optimizer(again, model, kept)
    assert copies.num_bytes == sum(value.nbytes for value in kept["moments"].values())
    theirs = {value.data_ptr() for value in kept["moments"].values()}
    assert not theirs & {value.data_ptr() for state in again.state.values() for value in state.values()}
