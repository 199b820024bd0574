from __future__ import annotations

from typing import Any

import pytest
import torch

from core.models import LanguageModel
from core.models.causal_lm import CausalLM
from core.monitoring import utilization
from core.monitoring.utilization import Utilization, flops_per_token, peak_flops
from core.parts import build_model
from tests.tiny_models import make_model_folder
from tests.unit.core.conftest import TEXT

LENGTH = 16


def scratch(config: Any, **more: Any) -> LanguageModel:
    return build_model(config(n_embd=32, n_head=4, n_layer=3, **more), vocab_size=50)


def test_a_full_model_needs_six_flops_for_each_weight_and_attentions_share(config: Any) -> None:
    matrices = 3 * (3 * 32 * 32 + 32 * 32 + 2 * 4 * 32 * 32) + 50 * 32
    expected = 6 * matrices + 12 * 3 * 32 * LENGTH
    assert flops_per_token(scratch(config), LENGTH) == expected


def test_a_tied_head_counts_though_it_is_the_embeddings(config: Any) -> None:
    modern = {"architecture": "modern", "activation": "relu2"}
    tied = scratch(config, tie_embeddings=True, **modern)
    free = scratch(config, tie_embeddings=False, **modern)
    assert flops_per_token(tied, LENGTH) == flops_per_token(free, LENGTH)


def test_frozen_matrices_cost_no_gradient_of_their_own(config: Any) -> None:
    full, adapted = scratch(config), scratch(config, use_lora=True, lora_rank=2)
    blocks = 3 * 12 * 32 * 32
    adapters = 3 * 2 * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert flops_per_token(adapted, LENGTH) == flops_per_token(full, LENGTH) - 2 * blocks + 6 * adapters


def test_preferences_ask_the_base_too(config: Any) -> None:
    model = scratch(config)
    once = 2 * (3 * 12 * 32 * 32 + 50 * 32) + 4 * 3 * 32 * LENGTH
    assert flops_per_token(model, LENGTH, "dpo") == flops_per_token(model, LENGTH) + once


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_any_family_is_counted_by_its_matrices(tmp_path: Any, family: str) -> None:
    model = CausalLM(make_model_folder(tmp_path / family, TEXT, family))
    settings = model.network.config
    heads = settings.num_attention_heads * getattr(
        settings, "head_dim", settings.hidden_size // settings.num_attention_heads
    )
    inside = sum(
        parameter.numel()
        for name, parameter in model.network.named_parameters()
        if parameter.dim() == 2 and (".h." in name or ".layers." in name)
    )
    head = settings.vocab_size * settings.hidden_size
    expected = 6 * (inside + head) + 12 * settings.num_hidden_layers * heads * LENGTH
    assert flops_per_token(model, LENGTH) == expected


def test_of_many_experts_those_count_that_see_a_token(tmp_path: Any) -> None:
    model = CausalLM(make_model_folder(tmp_path / "mixtral", TEXT, "mixtral"))
    settings = model.network.config
    before = flops_per_token(model, LENGTH)
    experts = sum(p.numel() for p in model.network.parameters() if p.dim() == 3)
    assert experts
    settings.num_experts_per_tok = settings.num_local_experts
    assert flops_per_token(model, LENGTH) > before
    assert flops_per_token(model, LENGTH) - before <= 6 * experts


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla T4", 65e12),
    ],
)
def test_a_known_device_is_told_by_its_data_sheet(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops.__wrapped__("cuda:0", torch.bfloat16) == peak


@pytest.mark.parametrize(
    ("device", "dtype"), [("cuda:0", torch.float32), ("cuda:0", torch.bfloat16), ("cpu", torch.float32)]
)
def test_any_other_is_measured(monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Something else")
    monkeypatch.setattr(utilization, "_measured_flops", lambda *_: 1e12)
    assert peak_flops.__wrapped__(device, dtype) == 1e12


@pytest.mark.parametrize("name", ["NVIDIA RTX A1000", "NVIDIA T400", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_a_name_that_only_looks_like_a_known_one_is_measured(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(utilization, "_measured_flops", lambda *_: 1e12)
    assert peak_flops.__wrapped__("cuda:0", torch.bfloat16) == 1e12


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), RuntimeError("no such product"), MemoryError()])
def test_where_no_peak_can_be_found_the_run_goes_on_without_the_figure(
    run: Any, config: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: Any) -> float:
        raise error

    monkeypatch.setattr(utilization, "_measured_flops", refuse)
    monkeypatch.setattr(utilization, "peak_flops", peak_flops.__wrapped__)
    made = run(config(training_steps=2))
    made.trainer.train()
    assert [step.mfu for step in made.of("step")] == [None, None]


def test_measuring_moves_no_generator_and_finds_something_plausible() -> None:
    before = torch.get_rng_state()
    assert 1e8 < utilization._measured_flops("cpu", torch.float32, 128) < 1e14
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_share_the_work_and_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilization, "peak_flops", lambda *_: 1000.0)
    assert Utilization(10.0, "cpu", torch.float32).at(50.0) == 0.5
    assert Utilization(10.0, "cpu", torch.float32, world_size=2).at(50.0) == 0.25


def test_each_update_tells_it(run: Any, config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(utilization, "peak_flops", lambda *_: 1e9)
    made = run(config(training_steps=2))
    made.trainer.train()
    assert all(step.mfu > 0 for step in made.of("step"))
