"""What survives a restart, and what a folder that anyone may have made can say of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.manifest import MANIFEST, read_manifest
from core.checkpoints.state_file import MAX_STATE_BYTES, SavedRun, SavedState, Scale
from core.errors import CheckpointCorrupt, CheckpointError
from core.optimization.precision import Precision
from core.state import RunState, capture, restore_rng, rng_states
from core.trainer import Trainer
from tests.unit.core.models.test_pretrained import reseal

HISTORY = "history.safetensors"


@pytest.fixture
def checkpoint(run: Any, config: Any, store: CheckpointStore) -> Path:
    run(config(), store=store).trainer.train()
    return next(iter(store)).path


def tell(checkpoint: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what its state says, and everything that would tell of it."""
    said = json.loads((checkpoint / "state.json").read_text())
    change(said)
    (checkpoint / "state.json").write_text(json.dumps(said))
    reseal(checkpoint)


def remember(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], object], name: str) -> None:
    """The same of its tensors."""
    tensors = {key: tensor.clone() for key, tensor in load_file(checkpoint / name).items()}
    change(tensors)
    save_file(tensors, checkpoint / name)
    reseal(checkpoint)


def test_the_history_is_a_file_of_its_own_and_comes_back_to_the_last_bit(
    run: Any, config: Any, store: CheckpointStore
) -> None:
    told = run(config(), store=store)
    told.trainer.train()
    checkpoint = next(iter(store)).path
    assert "evaluations" not in json.loads((checkpoint / "state.json").read_text())["run"]
    assert HISTORY in read_manifest(checkpoint).manifest.files
    evaluations = load_checkpoint(checkpoint)["run"]["evaluations"]
    assert evaluations == told.trainer.run.evaluations
    assert [type(value) for value in evaluations[0].values()] == [int, float, float]


def test_a_run_that_evaluated_a_million_times_is_loaded_again(run: Any, config: Any, store: CheckpointStore) -> None:
    told = run(config(training_steps=4, eval_interval=100), store=store)
    one = {"step": 3, "train_loss": 2.3456789012345678, "val_loss": 2.3456789012345678}
    told.trainer.run.evaluations = [one] * 1_000_000
    assert len(json.dumps(one)) * 1_000_000 > MAX_STATE_BYTES
    told.trainer.train()
    loaded = load_checkpoint(next(iter(store)).path)
    assert len(loaded["run"]["evaluations"]) >= 1_000_000
    assert loaded["run"]["evaluations"][0] == one


def test_what_was_captured_stays_as_it_was_without_a_copy_of_each_evaluation(run: Any, config: Any) -> None:
    parts = run(config()).trainer.parts
    state = RunState(step=1, evaluations=[{"step": 1, "train_loss": 1.0, "val_loss": 1.0}])
    captured = capture(parts.model, parts.optimizer, parts.tokenizer, state)
    state.evaluations.append({"step": 2, "train_loss": 1.0, "val_loss": 1.0})
    assert len(captured.evaluations) == 1
    assert captured.evaluations[0] is state.evaluations[0]
    assert "evaluations" not in captured.plain["run"]


def test_a_run_without_evaluations_is_loaded_again(
    run: Any, config: Any, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "evaluate", lambda _: None)
    run(config(), store=store).trainer.train()
    assert load_checkpoint(next(iter(store)).path)["run"]["evaluations"] == []


def test_a_history_within_the_state_is_read_as_the_first_releases_wrote_it(checkpoint: Path) -> None:
    before = load_checkpoint(checkpoint)["run"]
    (checkpoint / HISTORY).unlink()
    tell(checkpoint, lambda said: said["run"].update(evaluations=before["evaluations"]))
    assert load_checkpoint(checkpoint)["run"] == before


def test_everything_that_a_run_knows_of_itself_is_checked_and_read() -> None:
    assert list(SavedRun.model_fields) == list(TypeAdapter(RunState).json_schema()["properties"])


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no run": lambda said: said.pop("run"),
    "another run": lambda said: said.update(run={"nope": 1}),
    "a step of another time": lambda said: said["run"].update(step=4),
    "a warm-up of no updates": lambda said: said["run"].update(num_rising=0),
    "a warm-up that is a text": lambda said: said["run"].update(num_rising="9"),
    "a warm-up without an end": lambda said: said["run"].update(num_rising=10**9),
    "a text for a step": lambda said: said["run"].update(step="x"),
    "tokens below none": lambda said: said["run"].update(tokens_seen=-1),
    "other evaluations": lambda said: said["run"].update(evaluations=[{"a": 1}]),
    "an optimizer without names": lambda said: said.update(optimizer=[{}]),
    "an optimizer that is a number": lambda said: said.update(optimizer=1),
    "generators of another kind": lambda said: said.update(rng={"python": [3, [1], None]}),
    "a place outside of NumPy's words": lambda said: said["rng"]["numpy"].__setitem__(1, 10**6),
    "too few of NumPy's words": lambda said: said["rng"]["numpy"].__setitem__(0, [1]),
    "too large words": lambda said: said["rng"]["python"].__setitem__(1, [2**40] * 625),
    "no hexadecimal digits": lambda said: said["rng"].update(torch="zz"),
    "generators of others that are none": lambda said: said.update(rng_of_others=[1]),
    "a scale without its parts": lambda said: said.update(scale={"scale": 1.0}),
    "a scale of nothing": lambda said: said.update(scale={**SCALE, "scale": 0.0}),
    "a scale that never ends": lambda said: said.update(scale={**SCALE, "scale": float("inf")}),
}
SCALE = {"scale": 2.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 10, "_growth_tracker": 0}


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_state_that_makes_no_sense_is_one_sentence_when_it_is_read(checkpoint: Path, what: str) -> None:
    tell(checkpoint, HOSTILE[what])
    with pytest.raises(CheckpointCorrupt, match=r"cannot be read: state\.json") as refused:
        load_checkpoint(checkpoint)
    assert "\n" not in refused.value.message
    assert len(refused.value.message) < 500


def test_a_step_that_differs_from_the_manifest_is_refused_where_no_seal_would_tell(checkpoint: Path) -> None:
    said = json.loads((checkpoint / MANIFEST).read_text())
    del said["seal"]
    (checkpoint / MANIFEST).write_text(json.dumps({**said, "format": 1, "step": 7}))
    with pytest.raises(CheckpointCorrupt, match=r"state\.json is of step 8, and the manifest of step 7"):
        load_checkpoint(checkpoint)


BENT: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "no table": lambda tensors: tensors.clear(),
    "another shape": lambda tensors: tensors.update(evaluations=torch.zeros(6, dtype=torch.float64)),
    "two columns": lambda tensors: tensors.update(evaluations=torch.zeros(3, 2, dtype=torch.float64)),
    "another type": lambda tensors: tensors.update(evaluations=torch.zeros(2, 3)),
    "a step to come": lambda tensors: tensors["evaluations"][0].fill_(9),
    "a step below none": lambda tensors: tensors["evaluations"][0].fill_(-1),
    "no number": lambda tensors: tensors["evaluations"][0].fill_(float("nan")),
}


@pytest.mark.parametrize("what", list(BENT))
def test_a_history_that_makes_no_sense_is_one_sentence(checkpoint: Path, what: str) -> None:
    remember(checkpoint, BENT[what], HISTORY)
    with pytest.raises(CheckpointCorrupt, match=r"cannot be read: history\.safetensors"):
        load_checkpoint(checkpoint)


def first(tensors: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in tensors if name.endswith(f"::{ending}"))


MISFITS: dict[str, Callable[[dict[str, torch.Tensor]], object]] = {
    "another shape": lambda moments: moments.update({first(moments, "exp_avg"): torch.zeros(3)}),
    "one for all": lambda moments: moments.update({first(moments, "exp_avg_sq"): torch.tensor(1.0)}),
    "steps for each": lambda moments: moments.update({first(moments, "step"): torch.zeros(5)}),
    "whole numbers": lambda moments: moments.update({first(moments, "step"): torch.tensor(1)}),
    "one missing": lambda moments: moments.pop(first(moments, "exp_avg")),
    "one too many": lambda moments: moments.update({"head.bias::evil": torch.zeros(1)}),
    "of no parameter": lambda moments: moments.update({"nobody::step": torch.tensor(1.0)}),
    "of no name": lambda moments: moments.update({"evil": torch.tensor(1.0)}),
}


@pytest.mark.parametrize("what", list(MISFITS))
def test_moments_that_do_not_fit_are_one_sentence_before_the_first_update(
    run: Any, config: Any, checkpoint: Path, what: str
) -> None:
    remember(checkpoint, MISFITS[what], "optimizer.safetensors")
    content = load_checkpoint(checkpoint)
    with pytest.raises(CheckpointError, match="the checkpoint's optimizer"):
        run(config(), resume=content)


def test_the_generators_go_on_where_they_were() -> None:
    states = json.loads(json.dumps(rng_states()))

    def draws() -> list[float]:
        return [random.random(), float(np.random.random()), float(torch.rand(())), random.gauss(0, 1)]

    before = draws()
    draws()
    restore_rng(states)
    assert draws() == before


@pytest.mark.parametrize(
    "wrong",
    [
        {"torch": "00"},
        {"torch": "zz"},
        {"python": [3, [1], None]},
        {"python": [3, [0] * 624 + [700], None]},
        {"numpy": [[1] * 624, 700, 0, 0.0]},
        {"numpy": None},
    ],
)
def test_generators_that_cannot_be_restored_are_one_sentence(wrong: dict[str, Any]) -> None:
    before = rng_states()
    try:
        with pytest.raises(CheckpointCorrupt, match="generators cannot be restored"):
            restore_rng({**before, **wrong})
    finally:
        restore_rng(before)


class Gpus:
    """Stands for four GPUs: the generator of each is told by its first byte."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.states = {f"cuda:{index}": torch.tensor([index + 1], dtype=torch.uint8) for index in range(4)}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: self.states[device])
        monkeypatch.setattr(torch.cuda, "set_rng_state", self.set)

    def set(self, state: torch.Tensor, device: str) -> None:
        self.states[device] = state.clone()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    return Gpus(monkeypatch)


def test_the_generator_of_a_run_s_own_gpu_goes_on_whichever_gpu_it_goes_on_on(gpus: Gpus) -> None:
    saved = rng_states("cuda:1")
    assert saved["cuda"] == "02"
    restore_rng(saved, "cuda:0")
    assert [int(state) for state in gpus.states.values()] == [2, 2, 3, 4]


def test_a_run_on_the_cpu_keeps_no_gpu_and_touches_none(gpus: Gpus) -> None:
    assert "cuda" not in rng_states("cpu")
    restore_rng({**rng_states("cpu"), "cuda": "09"}, "cpu")
    assert [int(state) for state in gpus.states.values()] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("saved", "device", "restored"),
    [(["07", "08"], "cuda:1", 8), (["07", "08"], "cuda:0", 7), (["07", "08"], "cuda:3", 7), ([], "cuda:2", 3)],
)
def test_the_generators_of_all_gpus_are_read_as_the_first_releases_kept_them(
    gpus: Gpus, saved: list[str], device: str, restored: int
) -> None:
    restore_rng({**rng_states("cpu"), "cuda": saved}, device)
    assert int(gpus.states[device]) == restored


def test_what_a_run_in_halves_saves_of_its_scale_is_what_is_read() -> None:
    precision = Precision("fp16", "cpu")
    Scale.model_validate(precision.state())
    assert SavedState.model_validate({"run": {"step": 1}, "optimizer": [], "rng": None, "scale": {}}).scale == {}
