"""A base in four bits: what is packed, to which numbers, and that adapters learn on it as on any other."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.export import export
from core.checkpoints.opening import load_base, open_for_generation
from core.checkpoints.resume_rules import ResumeMode, may_change
from core.errors import ConfigError, ModelUnavailable
from core.libraries import import_bitsandbytes
from core.models import pretrained
from core.models.causal_lm import CausalLM
from core.models.four_bit import BLOCK, FourBitLinear, linear_in_blocks, num_weights
from core.models.pretrained import lay_out_causal_lm, load_causal_lm
from core.sources.corpus import Corpus
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT, Run

IDS_BT = torch.arange(12)[None]

LEVELS = torch.tensor(
    [
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
    ]
)
"""Of NF4."""


def packed(weight: Tensor, bias: nn.Parameter | None = None, *, inputs_first: bool = False) -> FourBitLinear:
    shape = weight.shape if inputs_first else weight.shape[::-1]
    import_bitsandbytes("quantization", "nf4", "none")
    layer = FourBitLinear(*shape, bias, inputs_first=inputs_first)
    layer.pack(weight)
    return layer


def nearest(weight: Tensor) -> Tensor:
    """As the definition has it, with scales that are not rounded."""
    flat = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
    scales = flat.abs().amax(1, keepdim=True)
    which = ((flat / scales)[:, :, None] - LEVELS).abs().argmin(-1)
    return (LEVELS[which] * scales).flatten()[: weight.numel()].view_as(weight)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(64, 128), (32, 32), (48, 80), (33, 47), (3, 5), (1, 1), (700, 640)], ids=str)
def test_each_number_is_the_nearest_of_sixteen(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    found = packed(weight).dequantize()
    # Scales are rounded to eight bits.
    torch.testing.assert_close(found, nearest(weight), rtol=0.02, atol=0.02)


def test_a_matrix_of_any_type_and_either_way_round_gives_the_same_bits() -> None:
    weight = random(48, 80).bfloat16()
    expected = packed(weight.float()).dequantize()
    assert torch.equal(packed(weight).dequantize(), expected)
    assert torch.equal(packed(weight.T.contiguous(), inputs_first=True).dequantize(), expected)


def test_a_matrix_of_many_chunks_gives_the_same_bits_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random(100, 70)
    expected = packed(weight).dequantize()
    monkeypatch.setattr("core.models.four_bit._CHUNK", BLOCK * 3)
    assert torch.equal(packed(weight).dequantize(), expected)


def test_it_takes_a_little_more_than_half_a_byte_for_each_number() -> None:
    layer = packed(random(1024, 512))
    assert 0.5 < sum(parameter.nbytes for parameter in layer.parameters()) / (1024 * 512) < 0.53


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_it_computes_and_learns_as_the_linear_layer_of_its_matrix(kind: torch.dtype) -> None:
    layer = packed(random(32, 48), nn.Parameter(random(32), requires_grad=False))
    plain = nn.Linear(48, 32).requires_grad_(False)
    plain.weight.data, plain.bias.data = layer.dequantize(), random(32)
    found = []
    for one in (layer, plain):
        given = random(5, 48).requires_grad_()
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            said = one(given)
        said.float().square().sum().backward()
        found.append((said, given.grad))
    assert found[0][0].dtype == found[1][0].dtype == kind
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_asked_without_gradients_in_between_it_still_says_and_learns_the_same() -> None:
    layer = packed(random(64, 64))

    def gradient() -> Tensor:
        given = random(4, 64).requires_grad_()
        layer.train()(given).square().sum().backward()
        assert given.grad is not None
        return given.grad

    before = gradient()
    with torch.no_grad():
        asked = layer.eval()(random(4, 64))
    assert torch.equal(layer.train()(random(4, 64)), asked)
    assert torch.equal(gradient(), before)


def test_no_matrix_is_kept_for_the_way_back() -> None:
    layer, kept = packed(random(256, 256)), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(random(2, 256).requires_grad_()).sum()
    assert max(kept, default=0) < 256 * 256


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"mixtral"}))
def test_of_a_base_the_matrices_of_its_blocks_are_packed_and_nothing_else(tmp_path: Path, family: str) -> None:
    folder = make_model_folder(tmp_path / family, TEXT, family)
    plain = load_causal_lm(folder)
    found = load_causal_lm(folder, in_four_bits=True)
    expected = dict(linear_in_blocks(plain))
    layers = {name: part for name, part in found.named_modules() if isinstance(part, FourBitLinear)}
    assert layers.keys() == expected.keys()
    for name, layer in layers.items():
        weight = expected[name].weight
        assert isinstance(weight, Tensor)
        assert torch.equal(layer.dequantize(), packed(weight.detach(), inputs_first=layer.inputs_first).dequantize())
    inside = tuple(f"{name}.weight" for name in layers)
    others = {name: parameter for name, parameter in plain.named_parameters() if name not in inside}
    there = dict(found.named_parameters())
    assert others
    assert all(torch.equal(there[name], parameter) for name, parameter in others.items())
    one, other = (model.eval()(input_ids=IDS_BT, use_cache=False).logits for model in (plain, found))
    assert not torch.equal(one, other)
    assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_it_has_as_many_weights_as_the_whole_base(tmp_path: Path, family: str) -> None:
    folder = make_model_folder(tmp_path / family, TEXT, family)
    whole, found = (CausalLM(folder, use_lora=True, quantization=name) for name in ("none", "nf4"))
    expected = [(parameter.numel(), parameter.requires_grad) for parameter in whole.parameters()]
    counts = sum(size for size, _ in expected), sum(size for size, trains in expected if trains)
    assert num_weights(whole) == num_weights(found) == counts


@pytest.fixture
def half(llama_folder: Path, tmp_path: Path) -> Path:
    """A base whose weights are kept in bf16."""
    folder = tmp_path / "half"
    shutil.copytree(llama_folder, folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor.bfloat16() for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_what_is_packed_is_read_from_the_file_and_never_made_longer(
    half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Tensor] = []
    pack = FourBitLinear.pack
    monkeypatch.setattr(FourBitLinear, "pack", lambda self, weight: (given.append(weight), pack(self, weight)))
    model = load_causal_lm(half, in_four_bits=True)
    assert len(given) == len(list(linear_in_blocks(model)))
    assert {tensor.dtype for tensor in given} == {torch.bfloat16}
    with torch.device("meta"):
        laid_out = type(model)(model.config)
    stand_ins = pretrained._to_pack(laid_out, load_file(half / "model.safetensors"))
    assert len(stand_ins) == len(given)
    assert {stand_in.untyped_storage().nbytes() for _, stand_in in stand_ins.values()} == {4}


def test_weights_that_are_put_together_in_another_way_are_one_sentence(
    llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = pretrained._pack

    def pack_others(folder: Path, model: Any, to_pack: Any, weights: Any) -> None:
        pack(folder, model, {layer: (name, there.clone()) for layer, (name, there) in to_pack.items()}, weights)

    monkeypatch.setattr(pretrained, "_pack", pack_others)
    with pytest.raises(ModelUnavailable, match=r"'tiny-llama' .* cannot be quantized"):
        load_causal_lm(llama_folder, in_four_bits=True)


@pytest.mark.parametrize("kind", ["gpt2_lora", "llama_lora"])
def test_adapters_learn_on_it_as_on_the_whole_base_and_it_stays(run: Any, config: Any, kind: str) -> None:
    given = {"learning_rate": 1e-2, "training_steps": 30, "eval_interval": 30, "lora_dropout": 0}
    told = run(config(kind, quantization="nf4", **given))
    model = told.trainer.parts.model
    before = {name: parameter.clone() for name, parameter in model.named_parameters() if not parameter.requires_grad}
    told.trainer.train()
    whole = run(config(kind, **given))
    whole.trainer.train()
    losses, theirs = ([event.train_loss for event in each.of("eval")] for each in (told, whole))
    assert losses[0] - losses[-1] == pytest.approx(theirs[0] - theirs[-1], rel=0.2)
    assert losses[0] - losses[-1] > 0.1
    assert all(torch.equal(dict(model.named_parameters())[name], value) for name, value in before.items())
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_a_checkpoint_keeps_the_adapters_alone_and_knows_the_base_by_its_own_files(
    run: Any, config: Any, tmp_path: Path
) -> None:
    found = {}
    for quantization in ("none", "nf4"):
        store = CheckpointStore(tmp_path / quantization)
        run(config("llama_lora", quantization=quantization), store=store).trainer.train()
        found[quantization] = load_checkpoint(next(iter(store)).path)
    plain, packed = found["none"], found["nf4"]
    shapes = [{name: t.shape for name, t in each["model_state_dict"].items()} for each in (plain, packed)]
    assert shapes[0] == shapes[1]
    assert all("lora_" in name for name in shapes[1])
    assert {**packed["hashes"], "config": ""} == {**plain["hashes"], "config": ""}


def test_preferences_are_learnt_against_the_base_as_it_is_packed(config: Any, corpus: Callable[..., Corpus]) -> None:
    rows = [
        {"prompt": f"{a} plus {b}?", "chosen": f" It is {a + b}", "rejected": f" QUESTION {a}"}
        for a in range(6)
        for b in range(6)
    ]
    given = {"block_size": 32, "batch_size": 8, "training_steps": 24, "eval_interval": 12, "learning_rate": 3e-3}
    told = Run(config("llama_nf4_lora", **given, lora_dropout=0), corpus(rows))
    told.trainer.train()
    evaluations = told.of("eval")
    assert evaluations[0].train_loss == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-4)
    assert evaluations[-1].val_loss < 0.6


quiet = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def logits(network: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = network.eval()(input_ids=IDS_BT).logits
        return found


@quiet
@pytest.mark.parametrize("kind", ["gpt2_lora", "llama_lora"])
def test_what_is_exported_belongs_to_the_base_as_it_is(
    run: Any, config: Any, store: CheckpointStore, tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    given = config(kind, quantization="nf4", learning_rate=1e-2, lora_dropout=0.0)
    run(given, store=store).trainer.train()
    checkpoint = next(iter(store)).path
    export(checkpoint, tmp_path / "models", "adapters")
    export(checkpoint, tmp_path / "models", "merged", merge=True)
    base = AutoModelForCausalLM.from_pretrained(given.base_model)
    adapted = logits(PeftModel.from_pretrained(base, tmp_path / "models" / "adapters"))
    whole, _ = open_for_generation(checkpoint, whole_base=True)
    assert torch.equal(logits(whole.network), adapted)
    merged, _ = load_base(str(tmp_path / "models" / "merged"))
    torch.testing.assert_close(logits(merged.network), adapted, rtol=0, atol=1e-5)
    # Asked, it is what was trained.
    asked, _ = open_for_generation(checkpoint)
    assert any(isinstance(part, FourBitLinear) for part in asked.modules())
    assert not torch.allclose(logits(asked.network), adapted, atol=1e-4)
    said = json.loads((tmp_path / "models" / "adapters" / "adapter_config.json").read_text())
    assert said["fan_in_fan_out"] is (kind == "gpt2_lora")


def test_a_missing_package_is_one_sentence(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match=r"quantization: 'nf4' needs .*pip install 'ratchet\[bitsandbytes\]'.*'none'"):
        CausalLM(llama_folder, use_lora=True, quantization="nf4")


def test_it_may_change_with_a_warm_start_alone(run: Any, config: Any, store: CheckpointStore) -> None:
    assert [mode for mode in ResumeMode if may_change("quantization", mode)] == [ResumeMode.WARM_START]
    run(config("llama_nf4_lora"), store=store).trainer.train()
    content = load_checkpoint(next(iter(store)).path)
    warm = run(config("llama_lora"), resume=content, mode=ResumeMode.WARM_START)
    assert not any(isinstance(part, FourBitLinear) for part in warm.trainer.parts.model.modules())
    found = warm.trainer.parts.model.tensors()
    assert all(torch.equal(found[name], value) for name, value in content["model_state_dict"].items())


@pytest.mark.parametrize("load", [load_causal_lm, lay_out_causal_lm])
def test_a_model_whose_experts_would_stay_as_large_is_refused(tmp_path: Path, load: Callable[..., Any]) -> None:
    folder = make_model_folder(tmp_path / "mixtral", TEXT, "mixtral")
    with pytest.raises(ConfigError, match="keeps its experts in others: use 'none'"):
        load(folder, in_four_bits=True)
