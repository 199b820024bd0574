"""Moments of every kind: taken out by name, and put back only if they are what the optimizer would have made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from core.errors import CheckpointMismatch
from core.libraries import import_bitsandbytes
from core.optimization.moments import optimizer_state, restore_optimizer
from core.optimization.muon import Muon
from core.optimization.updates import Together
from tests.unit.core.copies import Copies

Saved = dict[str, Any]


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def muon(model: nn.Module) -> torch.optim.Optimizer:
    matrix, vector = model.parameters()
    return Together([Muon([matrix], lr=0.1, weight_decay=0.0), torch.optim.AdamW([vector], lr=0.1)])


def eight_bits(model: nn.Module) -> torch.optim.Optimizer:
    # By itself it keeps tensors as small as these in 32 bits.
    optimizer: torch.optim.Optimizer = import_bitsandbytes("optimizer", "adamw_8bit", "adamw").optim.AdamW8bit(
        model.parameters(), lr=0.1, min_8bit_size=8
    )
    return optimizer


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


@pytest.mark.parametrize("is_fused", [False, True])
def test_the_count_of_steps_is_where_this_optimizer_looks_for_it(is_fused: bool) -> None:
    """A fused update reads it where the parameter is; any other on the host."""
    model = nn.Linear(2, 2)
    optimizer = adamw(model)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    kept = saved(optimizer, model)
    elsewhere = nn.Linear(2, 2, device="meta")
    again = torch.optim.AdamW(elsewhere.parameters(), lr=0.1)
    for group in again.param_groups:
        group["fused"] = is_fused
    restore_optimizer(again, elsewhere, kept)
    places = {(key, value.device.type) for state in again.state.values() for key, value in state.items()}
    assert places == {("step", "meta" if is_fused else "cpu"), ("exp_avg", "meta"), ("exp_avg_sq", "meta")}


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
        **{"weight::step": (), "weight::state1": (3, 6), "weight::state2": (3, 6)},
        **{"weight::absmax1": (1,), "weight::absmax2": (1,)},
        **{"bias::step": (), "bias::state1": (3,), "bias::state2": (3,)},
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
    "too few blocks": ("eight_bits", {"weight::absmax1": torch.zeros(0)}),
    "too many blocks": ("eight_bits", {"weight::absmax2": torch.zeros(2)}),
    "scales of another type": ("eight_bits", {"weight::absmax1": torch.zeros(1, dtype=torch.float64)}),
    "another type of bytes": ("eight_bits", {"weight::state1": torch.zeros(3, 6)}),
    "another shape of bytes": ("eight_bits", {"weight::state1": torch.zeros(18, dtype=torch.uint8)}),
    "a part missing": ("eight_bits", {"weight::absmax1": None}),
    "a part too many": ("eight_bits", {"bias::absmax1": torch.zeros(1)}),
    "a step before the first": ("eight_bits", {"weight::step": torch.tensor(0)}),
    "a step in parts": ("eight_bits", {"weight::step": torch.tensor(1.5)}),
    "AdamW's for 8 bits": (
        "eight_bits",
        {f"bias::{moment}": None for moment in ("step", "state1", "state2")} | {"bias::exp_avg": torch.zeros(3)},
    ),
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
