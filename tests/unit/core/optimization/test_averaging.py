"""Averages of the weights: what they are, how they go on, and how they are looked through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.errors import CheckpointMismatch
from core.models import LanguageModel
from core.optimization.averaging import AVERAGES_FILE, Averages, averaged, decay_after
from core.optimization.updates import freeze
from tests.unit.core.conftest import KINDS
from tests.unit.core.copies import Copies
from tests.unit.core.fresh_models import fresh_model

COUNT = "::num_updates"


@pytest.fixture
def model_of(config: Any) -> Callable[..., LanguageModel]:
    return lambda kind="from_scratch": fresh_model(config(kind))


@torch.no_grad()
def move(model: LanguageModel, seed: int) -> None:
    """Stands for an optimizer's update."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def trained(model: LanguageModel) -> list[torch.Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def followed(model: LanguageModel, averages: Averages, steps: range) -> Averages:
    for step in steps:
        move(model, step)
        averages.update(model)
    return averages


def test_averages_are_what_the_sum_of_all_weights_says(model_of: Callable[..., LanguageModel]) -> None:
    model = model_of()
    averages = Averages(model, 0.3)
    expected = [parameter.detach().double() for parameter in trained(model)]
    for step in range(8):
        move(model, step)
        averages.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = [
            decay * one + (1 - decay) * other.detach() for one, other in zip(expected, trained(model), strict=True)
        ]
    found = [value for name, value in averages.tensors().items() if name != COUNT]
    assert all(torch.allclose(one, other.float(), atol=1e-5) for one, other in zip(found, expected, strict=True))


def test_what_a_run_began_with_is_soon_forgotten_and_then_the_decay_is_what_was_asked_for() -> None:
    assert decay_after(0, 0.999) == 0.1
    assert decay_after(10, 0.999) == 0.55
    assert decay_after(10**6, 0.999) == 0.999
    assert decay_after(10, 0.5) == 0.5


@pytest.mark.parametrize("kind", list(KINDS))
def test_averages_go_on_to_the_last_bit(model_of: Callable[..., LanguageModel], tmp_path: Path, kind: str) -> None:
    whole, part = model_of(kind), model_of(kind)
    expected = followed(whole, Averages(whole, 0.9), range(9)).tensors()
    averages = followed(part, Averages(part, 0.9), range(4))
    save_file(averages.tensors(), tmp_path / AVERAGES_FILE)
    again = Averages(part, 0.9)
    again.load(load_file(tmp_path / AVERAGES_FILE))
    found = followed(part, again, range(4, 9)).tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert {value.dtype for name, value in found.items() if name != COUNT} == {torch.float32}


@pytest.mark.parametrize("kind", list(KINDS))
def test_they_have_the_names_that_a_checkpoint_gives_to_what_trains(
    model_of: Callable[..., LanguageModel], kind: str
) -> None:
    model = model_of(kind)
    found = Averages(model, 0.9).tensors()
    weights = model.tensors()
    assert set(found) - {COUNT} <= set(weights)
    free = {parameter.data_ptr() for parameter in trained(model)}
    assert set(found) - {COUNT} == {name for name, tensor in weights.items() if tensor.data_ptr() in free}
    if kind.endswith("from_scratch_lora"):
        assert len(found) < len(weights), "what is frozen has no average"


@pytest.mark.parametrize("kind", list(KINDS))
def test_inside_the_model_is_its_averages_and_afterwards_itself(
    model_of: Callable[..., LanguageModel], kind: str
) -> None:
    model = model_of(kind).eval()
    averages = followed(model, Averages(model, 0.9), range(3))
    ids_BT = torch.arange(1, 9)[None]
    before, kept = model(ids_BT)[0], {name: tensor.clone() for name, tensor in model.tensors().items()}
    wanted = {name: value.clone() for name, value in averages.tensors().items()}
    with averages.swapped(model):
        inside = model(ids_BT)[0]
        assert all(torch.equal(model.tensors()[name], value) for name, value in wanted.items() if name != COUNT)
    assert torch.equal(model(ids_BT)[0], before)
    assert not torch.equal(inside, before)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.tensors().items())
    model.load_tensors(averaged(model.tensors(), wanted))
    assert torch.equal(model(ids_BT)[0], inside), "laid over a checkpoint's weights they say the same"


def test_an_error_inside_leaves_the_weights_where_they_were(model_of: Callable[..., LanguageModel]) -> None:
    model = model_of()
    averages = followed(model, Averages(model, 0.9), range(2))
    before = {name: tensor.clone() for name, tensor in model.tensors().items()}
    with pytest.raises(RuntimeError, match="meanwhile"), averages.swapped(model):
        raise RuntimeError("meanwhile")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.tensors().items())


def test_training_goes_on_as_if_nobody_had_looked(model_of: Callable[..., LanguageModel]) -> None:
    looked, other = model_of(), model_of()
    for model in (looked, other):
        averages = Averages(model, 0.9)
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(4):
            ids_BT = torch.arange(1, 9)[None]
            loss = model(ids_BT, ids_BT)[1]
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averages.update(model)
            if model is looked:
                with averages.swapped(model), torch.inference_mode():
                    model(ids_BT)
                with torch.inference_mode(), averages.swapped(model):
                    model(ids_BT)
    assert all(map(torch.equal, looked.parameters(), other.parameters()))


def test_they_take_as_much_memory_as_what_trains_and_to_look_through_them_takes_none(
    model_of: Callable[..., LanguageModel],
) -> None:
    model = model_of("gpt2_lora")
    with Copies() as made:
        averages = Averages(model, 0.9)
    assert made.num_bytes == sum(parameter.nbytes for parameter in trained(model))
    with Copies() as later:
        averages.update(model)
        with averages.swapped(model):
            pass
    assert later.num_bytes == 0


def test_only_what_trains_has_an_average(model_of: Callable[..., LanguageModel]) -> None:
    model = model_of()
    freeze(model, 1)
    averages = followed(model, Averages(model, 0.9), range(2))
    assert not any(name.startswith(("blocks.0.", "token_embedding")) for name in averages.tensors())
    weights = model.tensors()
    laid_over = averaged(weights, averages.tensors())
    assert laid_over.keys() == weights.keys()
    assert torch.equal(laid_over["token_embedding.weight"], weights["token_embedding.weight"])
    assert not torch.equal(laid_over["head.weight"], weights["head.weight"])


MISFITS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "no count": lambda tensors: tensors.pop(COUNT),
    "a count in parts": lambda tensors: tensors.update({COUNT: torch.tensor(1.0)}),
    "a count below none": lambda tensors: tensors.update({COUNT: torch.tensor(-1)}),
    "counts": lambda tensors: tensors.update({COUNT: torch.tensor([1])}),
    "one missing": lambda tensors: tensors.pop("head.weight"),
    "one too many": lambda tensors: tensors.update(nobody=torch.zeros(1)),
    "another shape": lambda tensors: tensors.update({"head.weight": torch.zeros(1)}),
    "another type": lambda tensors: tensors.update({"head.weight": tensors["head.weight"].half()}),
}


@pytest.mark.parametrize("what", list(MISFITS))
def test_averages_that_do_not_fit_are_one_sentence(model_of: Callable[..., LanguageModel], what: str) -> None:
    averages = Averages(model_of(), 0.9)
    tensors = averages.tensors()
    MISFITS[what](tensors)
    with pytest.raises(CheckpointMismatch, match=r"the checkpoint's ema\.safetensors") as refused:
        averages.load(tensors)
    assert "\n" not in refused.value.message


@pytest.mark.parametrize("what", ["one too many", "another shape", "another type"])
def test_averages_that_do_not_fit_are_laid_over_nothing(model_of: Callable[..., LanguageModel], what: str) -> None:
    model = model_of()
    tensors = Averages(model, 0.9).tensors()
    MISFITS[what](tensors)
    with pytest.raises(CheckpointMismatch, match="not a weight of this model"):
        averaged(model.tensors(), tensors)
