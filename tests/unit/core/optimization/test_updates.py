"""Which rule trains what, how far an update goes, and that all of it goes on exactly where it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from core.config import TrainingConfig
from core.errors import ConfigError, DeviceUnavailable
from core.forecasts.estimates import SMALLEST_IN_8_BITS
from core.models import LanguageModel
from core.models.blocks import blocks_of
from core.models.causal_lm import CausalLM
from core.optimization.moments import optimizer_state, restore_optimizer
from core.optimization.precision import Precision
from core.optimization.updates import (
    Together,
    _eight_bit_adamw,
    build_optimizer,
    clip_gradients,
    freeze,
    set_learning_rate,
)
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT
from tests.unit.core.fresh_models import fresh_model

END = 12


class Training:
    """A model and its optimizer, without the loop around them."""

    def __init__(self, config: TrainingConfig, model: LanguageModel) -> None:
        self.config = config
        self.model = model
        self.optimizer = build_optimizer(config, self.model)
        self.precision = Precision(config.precision, "cpu")
        self.step = 0
        self.loss = 0.0

    def train(self, end: int) -> Training:
        self.model.train()
        while self.step < end:
            set_learning_rate(self.optimizer, self.config, self.step, END)
            self.optimizer.zero_grad(set_to_none=True)
            with self.precision.computing():
                _, loss = self.model(*self.batch())
            assert loss is not None
            self.precision.backward(loss)
            self.precision.unscale(self.optimizer)
            clip_gradients(self.model, self.config)
            self.precision.update(self.optimizer)
            self.loss = loss.item()
            self.step += 1
        return self

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of this step, (2, 16) each: numbers that rise by one, so there is something to learn."""
        first_B = torch.randint(30, (2, 1), generator=torch.Generator().manual_seed(self.step))
        ids_BT = first_B + torch.arange(17)
        return ids_BT[:, :-1], ids_BT[:, 1:]

    def moved_to(self, other: Training, folder: Path) -> Training:
        """Everything a checkpoint keeps of it, by way of the disk."""
        moments, settings = optimizer_state(self.optimizer, self.model)
        save_file({name: value.contiguous() for name, value in moments.items()}, folder / "moments")
        save_file({name: value.clone() for name, value in self.model.tensors().items()}, folder / "weights")
        plain = json.loads(json.dumps({"settings": settings, "scale": self.precision.state()}))
        other.model.load_tensors(load_file(folder / "weights"))
        saved = {"moments": load_file(folder / "moments"), "settings": plain["settings"]}
        restore_optimizer(other.optimizer, other.model, saved)
        other.precision.restore(plain["scale"])
        other.step = self.step
        return other

    def everything(self) -> dict[str, torch.Tensor]:
        return {**self.model.state_dict(), **optimizer_state(self.optimizer, self.model)[0]}


@pytest.fixture
def model_of(config: Any) -> Callable[..., LanguageModel]:
    return lambda kind="from_scratch": fresh_model(config(kind))


@pytest.fixture
def training(config: Any, model_of: Any) -> Callable[..., Training]:
    def training(kind: str = "from_scratch", **given: Any) -> Training:
        return Training(config(kind, training_steps=END, **given), model_of(kind))

    return training


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "muon"])
@pytest.mark.parametrize("kind", ["from_scratch", "gpt2", "llama"])
def test_an_optimizer_goes_on_exactly_where_it_was(
    training: Callable[..., Training], tmp_path: Path, kind: str, optimizer: str, precision: str
) -> None:
    given = {"optimizer": optimizer, "precision": precision, "lr_schedule": "cosine"}
    whole = training(kind, **given).train(6)
    part = training(kind, **given)
    for stop in (1, 4, 6):
        part = part.train(stop).moved_to(training(kind, **given), tmp_path)
    assert part.everything().keys() == whole.everything().keys()
    assert all(torch.equal(value, whole.everything()[name]) for name, value in part.everything().items())
    assert part.precision.state() == whole.precision.state()


def test_adamw_is_torchs_fused_one_to_the_last_bit(training: Callable[..., Training]) -> None:
    """Checkpoints go on with it: no other kernel, no other groups, no other decay."""
    ours, plain = training(), training()
    settings = {"lr": plain.config.learning_rate, "betas": (0.9, 0.99)}
    plain.optimizer = torch.optim.AdamW(plain.model.parameters(), fused=True, **settings)
    plain.optimizer.param_groups[0]["initial_lr"] = plain.config.learning_rate
    assert len(ours.optimizer.param_groups) == 1
    ours.train(5)
    plain.train(5)
    assert all(torch.equal(value, plain.everything()[name]) for name, value in ours.everything().items())


def test_adamw_is_told_what_the_configuration_says(training: Callable[..., Training]) -> None:
    given = training(learning_rate=0.5, weight_decay=0.0, beta1=0.8, beta2=0.7).optimizer.param_groups[0]
    assert (given["lr"], given["betas"], given["weight_decay"]) == (0.5, (0.8, 0.7), 0.0)


def names_of(training: Training, groups: list[dict[str, Any]]) -> set[str]:
    names = {id(parameter): name for name, parameter in training.model.named_parameters()}
    return {names[id(parameter)] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize(
    ("kind", "ends", "inputs_first"),
    [
        ("from_scratch", ("qkv", "out", "up", "down"), False),
        ("gpt2", ("c_attn", "c_proj", "c_fc"), True),
        ("llama", ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"), False),
    ],
)
def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_the_rest(
    training: Callable[..., Training], kind: str, ends: tuple[str, ...], inputs_first: bool
) -> None:
    found = training(kind, optimizer="muon", learning_rate=1e-3, muon_learning_rate=0.05)
    muon, adamw = found.optimizer.param_groups
    assert muon["inputs_first"] is inputs_first
    assert (muon["lr"], adamw["lr"]) == (0.05, 1e-3)
    matrices = names_of(found, [muon])
    assert {name.removesuffix(".weight").rpartition(".")[2] for name in matrices} == set(ends)
    assert not any("embed" in name or "head" in name or "wte" in name for name in matrices)
    everything = {name for name, parameter in found.model.named_parameters() if parameter.requires_grad}
    assert matrices | names_of(found, [adamw]) == everything
    assert not matrices & names_of(found, [adamw])


def test_muon_learns(training: Callable[..., Training]) -> None:
    begun = training(optimizer="muon", learning_rate=1e-2)
    first = begun.train(1).loss
    assert begun.train(END).loss < first - 0.5


@pytest.mark.parametrize("kind", ["from_scratch_lora", "gpt2_lora"])
def test_muon_with_lora_is_one_sentence(model_of: Any, config: Any, kind: str) -> None:
    model = model_of(kind)
    with pytest.raises(ConfigError, match="LoRA trains none: use 'adamw'"):
        config(kind, optimizer="muon")
    # Of a configuration that came another way, too.
    unchecked = config(kind).model_copy(update={"optimizer": "muon"})
    with pytest.raises(ConfigError, match=r"optimizer: 'muon' updates the matrices .* use 'adamw'"):
        build_optimizer(unchecked, model)


def test_groups_have_their_own_peak_and_one_schedule(training: Callable[..., Training]) -> None:
    given = {"optimizer": "muon", "learning_rate": 1e-3, "muon_learning_rate": 0.04, "warmup_steps": 4}
    begun = training(**given, lr_schedule="linear", min_lr_ratio=0.5)

    def rates(step: int) -> list[float]:
        said = set_learning_rate(begun.optimizer, begun.config, step, END)
        found = [group["lr"] for group in begun.optimizer.param_groups]
        assert found[1] == said
        return found

    assert rates(1) == pytest.approx([0.02, 5e-4])
    assert rates(3) == [0.04, 1e-3]
    assert rates(END - 1) == pytest.approx([0.02, 5e-4])


def test_a_constant_rate_is_as_it_was_to_the_last_bit(training: Callable[..., Training]) -> None:
    begun = training(learning_rate=3e-4, warmup_steps=7)
    for step in range(END):
        before = 3e-4 * min(1.0, (step + 1) / 7)
        assert set_learning_rate(begun.optimizer, begun.config, step, END) == before
        assert begun.optimizer.param_groups[0]["lr"] == before


def test_optimizers_together_have_one_face(training: Callable[..., Training]) -> None:
    begun = training(optimizer="muon").train(1)
    together = begun.optimizer
    assert isinstance(together, Together)
    assert [id(group) for group in together.param_groups] == [
        id(group) for part in together.parts for group in part.param_groups
    ]
    assert all(part.state is together.state for part in together.parts)
    assert {key for value in together.state.values() for key in value} == {
        *("momentum_buffer", "step", "exp_avg", "exp_avg_sq")
    }
    with pytest.raises(ValueError, match="another kind"):
        together.load_state_dict({})


def test_an_overflow_in_fp16_leaves_both_updates_out(training: Callable[..., Training]) -> None:
    begun = training(optimizer="muon", precision="fp16").train(2)
    before = {name: value.clone() for name, value in begun.everything().items()}
    for parameter in begun.model.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    begun.precision.unscale(begun.optimizer)
    begun.precision.update(begun.optimizer)
    assert all(torch.equal(value, before[name]) for name, value in begun.everything().items())


def gradients_of(model: nn.Module, value: float) -> list[torch.Tensor]:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.full_like(parameter, value)
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize(
    ("kind", "said", "limit"), [("from_scratch", None, 1.0), ("gpt2_lora", None, 2.0), ("gpt2_lora", 0.5, 0.5)]
)
def test_gradients_are_clipped_at_what_is_said_or_else_at_one_and_with_lora_at_two(
    model_of: Any, config: Any, kind: str, said: float | None, limit: float
) -> None:
    wanted = config(kind, max_grad_norm=said)
    model = model_of(kind)
    gradients = gradients_of(model, 3.0)
    expected = [gradient.clone() for gradient in gradients]
    before = clip_gradients(model, wanted)
    parameters = [nn.Parameter(torch.zeros_like(gradient)) for gradient in expected]
    for parameter, gradient in zip(parameters, expected, strict=True):
        parameter.grad = gradient
    assert before == float(nn.utils.clip_grad_norm_(parameters, limit)) > limit
    assert all(map(torch.equal, gradients, expected)), "to the last bit as torch does it in one go"


def test_without_clipping_the_norm_is_still_measured(model_of: Any, config: Any) -> None:
    wanted = config(max_grad_norm=0)
    model = model_of()
    gradients = gradients_of(model, 3.0)
    num_weights = sum(gradient.numel() for gradient in gradients)
    assert clip_gradients(model, wanted) == pytest.approx(3.0 * num_weights**0.5, rel=1e-5)
    assert all(bool((gradient == 3.0).all()) for gradient in gradients)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_frozen_layers_and_what_is_below_them_are_never_even_looked_at(tmp_path: Path, family: str) -> None:
    model = CausalLM(make_model_folder(tmp_path / family, TEXT, family))
    freeze(model, 1)
    blocks = blocks_of(model)
    assert len(blocks) == 2
    is_reached = []
    blocks[1].register_forward_pre_hook(
        lambda _, given, named: is_reached.append((given[0] if given else named["hidden_states"]).requires_grad),
        with_kwargs=True,
    )
    ids_BT = torch.arange(1, 9)[None]
    model(ids_BT, ids_BT)[1].backward()
    assert is_reached == [False], "no gradient flows below the first block that trains"
    assert all(parameter.grad is None for parameter in blocks[0].parameters())
    assert all(parameter.requires_grad for parameter in blocks[1].parameters())
    assert any(parameter.grad is not None for parameter in blocks[1].parameters())


def test_frozen_layers_stay_as_they_were_and_the_others_train(model_of: Any, config: Any) -> None:
    model = model_of()
    freeze(model, 1)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith(("token_embedding", "position_embedding", "blocks.0.")) for name in trains)
    assert {"head.weight", "norm.weight", "blocks.1.attention.qkv.weight"} <= trains
    (group,) = build_optimizer(config(), model).param_groups
    assert len(group["params"]) == len(trains)


def test_no_frozen_layers_leave_the_embeddings_free(model_of: Any, config: Any) -> None:
    model = model_of()
    freeze(model, 0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_more_frozen_layers_than_there_are_is_one_sentence(model_of: Any, config: Any) -> None:
    model = model_of()
    freeze(model, 2)
    with pytest.raises(ConfigError, match="freeze_layers: the model has 2 layers, so 3 cannot be frozen"):
        freeze(model, 3)


def test_a_model_of_which_nothing_trains_is_one_sentence(model_of: Any, config: Any) -> None:
    model = model_of()
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="freeze_layers: nothing is left to train"):
        build_optimizer(config(), model)


def test_the_layers_of_a_model_are_not_the_experts_of_one() -> None:
    block = nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(1, 1) for _ in range(9))})
    model = nn.Sequential(nn.ModuleDict({"layers": nn.ModuleList([block])}))
    assert [len(module) for module in blocks_of(model)] == [1]


def test_moments_in_8_bits_are_kept_of_large_tensors_alone(training: Callable[..., Training]) -> None:
    state = training("gpt2", optimizer="adamw_8bit").train(1).optimizer.state
    kinds = {(parameter.numel() >= SMALLEST_IN_8_BITS, kept["state1"].dtype) for parameter, kept in state.items()}
    assert kinds == {(True, torch.uint8), (False, torch.float32)}


def test_moments_in_8_bits_take_kernels_for_the_device_and_say_so() -> None:
    with pytest.raises(DeviceUnavailable, match="'adamw_8bit' has no kernels for mps, and this run is on it"):
        _eight_bit_adamw(torch.device("mps"))


def test_moments_in_8_bits_need_a_package_and_say_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"optimizer: .*pip install 'ratchet\[bitsandbytes\]'"):
        _eight_bit_adamw(torch.device("cpu"))
