"""What memory a step is said to need, against what it took."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from core.config import TrainingConfig
from core.errors import ConfigError, ModelUnavailable
from core.forecasts.estimates import Memory, memory_of
from core.forecasts.outline import Outline, outline
from core.models import LanguageModel
from core.objectives import NextToken, Preference
from core.optimization.updates import build_optimizer
from core.parts import build_model
from core.tokens.batches import Batch
from tests.conftest import PROJECT, skip_unless
from tests.gguf_files import make_gguf
from tests.tiny_models import FAMILIES, make_model_folder
from tests.unit.core.conftest import TEXT
from tests.unit.core.steps import VOCAB_SIZE

UNFORETOLD: set[str] = set()

CLASSIC: dict[str, Any] = {"n_embd": 256, "n_layer": 6, "n_head": 4, "block_size": 256, "batch_size": 16}
MODERN = {**CLASSIC, "architecture": "modern", "tokenizer": "bpe"}
GPT2 = {"model_type": "gpt2", "batch_size": 4, "block_size": 128}
LLAMA = {"model_type": "causal_lm", "batch_size": 4, "block_size": 256}
SHAPES: dict[str, dict[str, Any]] = {
    "classic": CLASSIC,
    "classic lora": {**CLASSIC, "use_lora": True},
    "classic bf16": {**CLASSIC, "precision": "bf16"},
    "modern": MODERN,
    "modern muon": {**MODERN, "optimizer": "muon", "gradient_accumulation_steps": 2},
    "gpt2": GPT2,
    "gpt2 lora": {**GPT2, "use_lora": True},
    "llama": LLAMA,
    "llama lora": {**LLAMA, "use_lora": True},
    "llama in four bits": {**LLAMA, "use_lora": True, "quantization": "nf4"},
    "llama in four bits, bf16, moments in eight": {
        **{**LLAMA, "use_lora": True, "quantization": "nf4"},
        **{"optimizer": "adamw_8bit", "precision": "bf16", "lora_rank": 64},
    },
}
WIDE: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 20_000, "n_positions": 256, "n_embd": 512, "n_layer": 6, "n_head": 8}),
    "causal_lm": (
        "llama",
        {
            **{"vocab_size": 16_000, "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6},
            **{"num_key_value_heads": 2, "intermediate_size": 1024, "max_position_embeddings": 512},
        },
    ),
}
"""model_type → family and settings that make it large enough to be measured."""


def batch_of(config: TrainingConfig, width: int = 1) -> Batch:
    ids_BT = torch.empty((width * config.batch_size, config.block_size), dtype=torch.int64, device="meta")
    return Batch(ids_BT, ids_BT, None, ids_BT.numel())


def laid_out(config: TrainingConfig) -> LanguageModel:
    if config.is_pretrained:
        return Outline(Path(config.base_model), config)
    return outline(config, VOCAB_SIZE if config.tokenizer == "bpe" else 100)


def foretold(config: TrainingConfig) -> Memory:
    return memory_of(config, laid_out(config), NextToken(), batch_of(config))


def make_wide_folder(folder: Path, family: str, **settings: Any) -> Path:
    """A model with more tokens than its tokenizer knows."""
    from transformers import AutoConfig, AutoModelForCausalLM

    make_model_folder(folder, TEXT, family)
    config = AutoConfig.for_model(family, bos_token_id=0, eos_token_id=0, **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def measured(given: dict[str, Any], warming: dict[str, Any]) -> int:
    # The C library keeps what was let go of smaller sizes, as much as chance has it; here all goes back at once.
    clean = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.core.steps", json.dumps(given), json.dumps(warming)]
    return int(subprocess.run(command, cwd=PROJECT, env=clean, stdout=subprocess.PIPE, text=True, check=True).stdout)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_memory_of_a_step_is_foretold_within_a_quarter(tmp_path: Path, shape: str) -> None:
    skip_unless(Path("/proc/self/clear_refs").exists(), "the peak of a process's memory is Linux's to tell")
    given, warming = dict(SHAPES[shape]), {"n_embd": 16, "n_head": 2, "n_layer": 1}
    if kind := given.get("model_type"):
        family, settings = WIDE[kind]
        given["base_model"] = str(make_wide_folder(tmp_path / "wide", family, **settings))
        warming = {"base_model": str(make_model_folder(tmp_path / "narrow", TEXT, family))}
    total, took = foretold(TrainingConfig(**given)).total, measured(given, warming)
    assert total == pytest.approx(took, rel=0.25)


@pytest.mark.parametrize(
    "given", [{}, {"use_lora": True}, {"use_lora": True, "quantization": "nf4"}], ids=["whole", "lora", "four bits"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_is_laid_out_as_it_is_built(tmp_path: Path, family: str, given: dict[str, Any]) -> None:
    folder = make_model_folder(tmp_path / family, TEXT, family)
    config = TrainingConfig(model_type="causal_lm", base_model=str(folder), block_size=32, **given)
    if family == "mixtral" and config.quantization != "none":
        with pytest.raises(ConfigError):
            Outline(folder, config)
        return
    built, found = build_model(config), Outline(folder, config)

    def parts(model: LanguageModel) -> dict[str, tuple[Any, bool]]:
        return {name: (tuple(p.shape), p.requires_grad) for name, p in model.named_parameters()}

    assert parts(found) == parts(built)
    assert (found.vocab_size, found.max_context) == (built.vocab_size, built.max_context)
    assert found.supports_segments == built.supports_segments
    assert {parameter.device.type for parameter in found.parameters()} == {"meta"}
    assert (memory_of(config, found, NextToken(), batch_of(config)).total is None) == (family in UNFORETOLD)


def test_a_packed_base_is_laid_out_without_being_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_unless(find_spec("gguf"), "the package gguf, which writes such files, is not installed")
    llama = make_model_folder(tmp_path / "llama", TEXT, "llama")
    make_gguf(tmp_path / "packed", llama)
    monkeypatch.setattr("core.models.pretrained.weights_of", None)
    config = TrainingConfig(model_type="causal_lm", base_model="packed", block_size=32)
    plain, packed = Outline(llama, config), Outline(tmp_path / "packed", config)
    assert [p.shape for p in packed.parameters()] == [p.shape for p in plain.parameters()]
    assert packed.encode(TEXT).tolist() == plain.encode(TEXT).tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_dropout_is_played_through(tmp_path: Path, family: str) -> None:
    folder = make_model_folder(tmp_path / family, TEXT, family)
    given: dict[str, Any] = {"model_type": "causal_lm", "base_model": str(folder), "block_size": 64}
    without, with_it = (foretold(TrainingConfig(**given, dropout=dropout)).total for dropout in (0, 0.1))
    assert without is not None
    assert with_it is not None
    assert with_it > 1.05 * without


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_base_that_lacks_a_file_is_refused_in_a_sentence(tmp_path: Path, name: str) -> None:
    folder = make_model_folder(tmp_path / "llama", TEXT, "llama")
    (folder / name).unlink()
    with pytest.raises(ModelUnavailable):
        Outline(folder, TrainingConfig(model_type="causal_lm", base_model="llama"))


def test_a_base_that_claims_more_than_it_has_is_refused_before_it_is_laid_out(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "llama", TEXT, "llama")
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, "num_hidden_layers": 10**9}))
    with pytest.raises(ModelUnavailable, match="num_hidden_layers 1000000000"):
        Outline(folder, TrainingConfig(model_type="causal_lm", base_model="llama"))


@pytest.mark.parametrize(
    ("given", "per_number"),
    [({}, 8), ({"ema_decay": 0.9}, 8)],
    ids=["adamw", "averages"],
)
def test_what_an_optimizer_remembers_is_counted(given: dict[str, Any], per_number: int) -> None:
    config = TrainingConfig(n_embd=32, block_size=16, **given)
    model = laid_out(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    found = memory_of(config, model, NextToken(), batch_of(config))
    assert (found.weights, found.gradients, found.optimizer) == (4 * count, 4 * count, per_number * count)
    assert found.averages == (4 * count if given.get("ema_decay") else 0)
    assert found.checkpoint == found.weights + found.optimizer + found.averages


def test_what_an_optimizer_in_8_bits_remembers_is_counted_to_the_byte() -> None:
    config = TrainingConfig(n_embd=68, block_size=16, optimizer="adamw_8bit")
    model = build_model(config, 100)
    optimizer = build_optimizer(config, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = sum(
        value.nbytes
        for entry in optimizer.state.values()
        for name, value in entry.items()
        if isinstance(value, torch.Tensor) and not name.startswith("qmap")
    )
    assert foretold(config).optimizer == kept


def test_a_base_in_four_bits_is_counted_to_the_byte(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "gpt2", TEXT, "gpt2")
    config = TrainingConfig(model_type="gpt2", base_model=str(folder), use_lora=True, quantization="nf4")
    found = foretold(config)
    assert found.weights == sum(parameter.nbytes for parameter in build_model(config).parameters())
    whole = foretold(config.model_copy(update={"quantization": "none"}))
    assert found.weights < whole.weights
    assert (found.gradients, found.optimizer, found.checkpoint) == (whole.gradients, whole.optimizer, whole.checkpoint)


def test_adapters_cost_what_they_are_and_not_what_they_are_on() -> None:
    full, lora = (foretold(TrainingConfig(**CLASSIC, use_lora=use_lora)) for use_lora in (False, True))
    assert lora.weights > full.weights
    assert lora.gradients < full.gradients / 4
    assert lora.optimizer < full.optimizer / 4


def test_preferences_ask_a_second_model_and_know_two_answers_to_each_prompt(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "gpt2", TEXT, "gpt2")
    config = TrainingConfig(model_type="gpt2", base_model=str(folder), batch_size=4, block_size=32)
    alone = foretold(config)
    reference = Outline(folder, config).requires_grad_(False)
    both = memory_of(config, laid_out(config), Preference(0.1, reference), batch_of(config, 2), reference)
    assert both.weights == 2 * alone.weights
    assert both.gradients == alone.gradients
    assert both.activations is not None
    assert alone.activations is not None
    assert both.activations > 1.5 * alone.activations


def test_rows_of_several_examples_need_masks(tmp_path: Path) -> None:
    config = TrainingConfig(n_embd=32, block_size=64)
    whole = batch_of(config)
    packed = Batch(whole.ids_BT, whole.targets_BT, whole.ids_BT, whole.num_targets)
    found = [memory_of(config, laid_out(config), NextToken(), batch).total or 0 for batch in (whole, packed)]
    assert found[1] - found[0] == 5 * config.batch_size * 64 * 64
