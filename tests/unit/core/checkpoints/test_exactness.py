"""Where equality to the last bit cannot be promised, the run says so; where the base is another, it does not begin."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.exactness import ROUNDING, departures, surroundings
from core.checkpoints.resume_rules import ResumeMode
from core.errors import CheckpointMismatch

HERE = {
    "rounding": ROUNDING,
    "device": "cpu",
    "processor": "AVX512",
    "world_size": "1",
    "num_threads": "1",
    "deterministic": "yes",
}


def warnings(told: Any) -> list[str]:
    told.trainer.begin()
    return [event.message for event in told.of("warning") if event.message.startswith("not bit-exact")]


@pytest.fixture
def saved(run: Any, config: Any, store: CheckpointStore) -> Any:
    run(config(), store=store).trainer.train()
    return load_checkpoint(next(iter(store)).path)


def test_where_nothing_differs_nothing_is_said(run: Any, config: Any, saved: Any) -> None:
    assert warnings(run(config(), resume=saved)) == []


@pytest.mark.parametrize(
    ("what", "before", "said"),
    [
        ("torch", "2.9.0", "torch was 2.9.0 and is"),
        ("transformers", "4.0", "transformers was 4.0 and is"),
        ("device", "cuda", "the device was cuda and is cpu"),
        ("world_size", "2", "it ran in 2 processes and runs in 1"),
        ("num_threads", "64", "it computed with 64 threads"),
        ("processor", "AVX2", "the processor was 'AVX2'"),
    ],
)
def test_what_differs_is_named(run: Any, config: Any, saved: Any, what: str, before: str, said: str) -> None:
    kept = saved["surroundings"] if what in saved["surroundings"] else saved["versions"]
    kept[what] = before
    [warning] = warnings(run(config(), resume=saved))
    assert said in warning


def test_a_warm_start_promises_nothing_and_warns_of_nothing(run: Any, config: Any, saved: Any) -> None:
    saved["versions"]["torch"] = "2.9.0"
    assert warnings(run(config(), resume=saved, mode=ResumeMode.WARM_START)) == []


def test_a_checkpoint_without_generators_is_said_not_to_be_exact(run: Any, config: Any, saved: Any) -> None:
    saved["rng"] = None
    assert "random numbers" in warnings(run(config(), resume=saved))[0]


def test_an_earlier_releases_checkpoint_that_does_not_say_where_it_was_made_was_rounded_otherwise() -> None:
    for surrounding in ({}, {name: value for name, value in HERE.items() if name != "rounding"}):
        [reason] = departures({}, surrounding, HERE, has_generators=True)
        assert reason == "it was saved by another release, which rounds otherwise"


def test_a_device_that_repeats_nothing_is_named_with_what_would_help() -> None:
    elsewhere = {**HERE, "device": "cuda", "deterministic": "no"}
    [reason] = departures({}, elsewhere, elsewhere, has_generators=True)
    assert "'deterministic'" in reason


def test_a_cpu_repeats_itself_in_any_mode() -> None:
    assert surroundings("cpu", 1, deterministic=False)["deterministic"] == "yes"


@pytest.fixture
def adapted(run: Any, config: Any, store: CheckpointStore, gpt2_folder: Path, tmp_path: Path) -> Any:
    """Settings and the checkpoint of adapters on a base of their own."""
    base = tmp_path / "base"
    shutil.copytree(gpt2_folder, base)
    settings = config("gpt2_lora", base_model=str(base))
    run(settings, store=store).trainer.train()
    return settings, load_checkpoint(next(iter(store)).path)


def _edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize("mode", list(ResumeMode))
@pytest.mark.parametrize("what", ["tokenizer", "architecture", "base_weights"])
def test_adapters_do_not_go_on_on_a_base_that_changed_and_what_changed_is_named(
    run: Any, adapted: Any, what: str, mode: ResumeMode
) -> None:
    settings, content = adapted
    base = Path(settings.base_model)
    match what:
        case "tokenizer":
            _edit_json(base / "tokenizer.json", truncation=None, unheard_of=1)
        case "architecture":
            _edit_json(base / "config.json", activation_function="relu")
        case "base_weights":
            weights = bytearray((base / "model.safetensors").read_bytes())
            weights[-1] ^= 1
            (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(CheckpointMismatch, match=f"its {what.removeprefix('base_')} changed") as refusal:
        run(settings, resume=content, mode=mode)
    assert [item.field for item in refusal.value.differences] == [what]


def test_adapters_are_of_the_base_that_was_read_whatever_lies_there_when_they_are_saved(
    run: Any, config: Any, store: CheckpointStore, gpt2_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(gpt2_folder, base)
    settings = config("gpt2_lora", base_model=str(base))
    told = run(settings, store=store)
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "other").write_bytes(weights)
    (tmp_path / "other").rename(base / "model.safetensors")
    told.trainer.train()
    with pytest.raises(CheckpointMismatch, match="its weights changed"):
        run(settings, resume=load_checkpoint(next(iter(store)).path))


def test_adapters_go_on_on_a_base_whose_notes_changed(run: Any, adapted: Any) -> None:
    settings, content = adapted
    _edit_json(Path(settings.base_model) / "tokenizer_config.json", note="read by nobody")
    run(settings, resume=content)


def test_every_rank_keeps_random_numbers_of_its_own(run: Any, config: Any, store: CheckpointStore) -> None:
    from core.distributed import Ranks

    first = run(config(dropout=0.2)).trainer
    ours = torch.get_rng_state()
    other = run(config(dropout=0.2), ranks=Ranks(1, 2)).trainer
    assert not torch.get_rng_state().equal(ours), "dropout would be the same on every rank"
    for one, another in zip(first.parts.model.parameters(), other.parts.model.parameters(), strict=True):
        assert one.equal(another), "all begin with the same weights"
    inputs = [trainer.parts.training_batch(0, 0).ids_BT for trainer in (first, other)]
    assert not inputs[0].equal(inputs[1])
