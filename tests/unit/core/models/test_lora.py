"""Which layers get adapters, and of which kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.models.lora import adapter_config, adapter_targets, add_adapters, wrap_with_adapters
from tests.unit.core.fresh_models import fresh_model

LINEAR = [f"layers.{number}.{part}" for number in range(2) for part in ("attn.q_proj", "attn.v_proj", "mlp.up")]


@pytest.mark.parametrize(
    ("wanted", "targets"),
    [
        ("all-linear", ["q_proj", "up", "v_proj"]),
        (" all-linear ", ["q_proj", "up", "v_proj"]),
        ("v_proj", ["v_proj"]),
        ("v_proj, q_proj,,v_proj", ["q_proj", "v_proj"]),
        ("attn.q_proj", ["attn.q_proj"]),
        ("layers.1.mlp.up", ["layers.1.mlp.up"]),
    ],
)
def test_layers_are_called_by_their_names_or_their_ends(wanted: str, targets: list[str]) -> None:
    assert adapter_targets(LINEAR, wanted) == targets


@pytest.mark.parametrize("wanted", ["k_proj", "proj", "q_proj,attn", "*", "all-linear,q_proj", "layers", ".q_proj"])
def test_a_name_of_no_layer_is_one_sentence_with_those_there_are(wanted: str) -> None:
    with pytest.raises(ConfigError, match=r"lora_targets: '.*' names no linear layer .* which has q_proj, up, v_proj"):
        adapter_targets(LINEAR, wanted)


def test_no_name_at_all_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="lora_targets: it names no linear layer"):
        adapter_targets(LINEAR, " , ")


def test_a_model_of_many_kinds_of_layers_is_told_in_one_line() -> None:
    with pytest.raises(ConfigError) as refused:
        adapter_targets([f"layer{number:03}" for number in range(500)], "x" * 900)
    assert len(str(refused.value)) < 500
    assert "layer019, …" in str(refused.value)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(16, 32)
        self.down = nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.down(self.up(x).relu()))


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_adapters_of_every_kind_begin_as_nothing_and_learn(more: dict[str, bool]) -> None:
    model, x = Layer(), torch.ones(1, 16)
    before = model(x)
    add_adapters(model, ["up", "down"], 4, 8.0, 0.0, **more)
    assert torch.allclose(model(x), before, atol=1e-6)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    assert model(x).square().sum() < before.square().sum()
    names = {name.rpartition("lora_")[2].partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"A", "B"} | ({"magnitude_vector"} if more.get("use_dora") else set())


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 2.0), (True, 4.0)])
def test_the_scale_is_alpha_over_the_rank_or_its_root(use_rslora: bool, scale: float) -> None:
    model = Layer()
    add_adapters(model, ["up"], 4, 8.0, 0.0, use_rslora=use_rslora)
    assert model.up.scaling["default"] == scale


@pytest.fixture
def model_of(config: Any) -> Any:
    return lambda kind="from_scratch": fresh_model(config(kind))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("more", [{"use_rslora": True}, {"use_dora": True}])
def test_a_pretrained_model_takes_adapters_of_every_kind_and_gives_them_back(
    model_of: Any, kind: str, more: dict[str, bool]
) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    def adapted() -> Any:
        network = model_of(kind).network
        chosen = adapter_targets(["h.0.c_attn"] if kind == "gpt2" else ["layers.0.q_proj"])
        wanted = adapter_config(chosen, 4, 8.0, 0.0, task_type="CAUSAL_LM", fan_in_fan_out=kind == "gpt2", **more)
        return wrap_with_adapters(network, wanted)

    model, ids_BT = adapted(), torch.arange(1, 9)[None]
    model.eval()
    before = model(input_ids=ids_BT).logits
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids_BT, labels=ids_BT).loss.backward()
        optimizer.step()
    after = model(input_ids=ids_BT).logits
    assert not torch.equal(after, before)
    kept = {name: value.clone() for name, value in get_peft_model_state_dict(model).items()}
    assert any("magnitude" in name for name in kept) is bool(more.get("use_dora"))
    again = adapted().eval()
    set_peft_model_state_dict(again, kept)
    assert torch.equal(again(input_ids=ids_BT).logits, after)
