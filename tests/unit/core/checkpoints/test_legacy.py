from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.opening import adopt_legacy, load_for_generation, open_for_generation
from core.config import config_to_dict, load_config_from_checkpoint
from core.errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch, CheckpointUnsafe, ConfigError
from core.generation import Completion, Sampling
from training import Console


class Canary:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def legacy_file(run: Any, config: Any, tmp_path: Path) -> Path:
    """As the older scripts wrote it: one dict of weights, optimizer, step and hyperparameters."""
    told = run(config(training_steps=4))
    told.trainer.train()
    parts = told.trainer.parts
    path = tmp_path / "checkpoint_from_scratch_sums_step000004_abcdefg.pt"
    torch.save(
        {
            "step": 4,
            "model_state_dict": parts.model.state_dict(),
            "optimizer_state_dict": parts.optimizer.state_dict(),
            "hyperparameters": {name.upper(): value for name, value in config_to_dict(parts.config).items()},
            "vocab_size": parts.tokenizer.vocab_size,
            "chars": parts.tokenizer.characters,
            "some_note_of_the_author": "hello",
        },
        path,
    )
    return path


def test_a_legacy_file_can_be_resumed(run: Any, config: Any, legacy_file: Path) -> None:
    content = load_checkpoint(legacy_file)
    told_settings, _ = load_config_from_checkpoint(content, {"RESUME_STEPS": "3"})
    assert (told_settings.start_step, told_settings.training_steps, told_settings.n_embd) == (4, 3, 16)
    told = run(told_settings.training(), resume=content)
    told.trainer.train()
    assert [event.step for event in told.of("step")] == [5, 6, 7]
    whole = run(config(training_steps=7))
    whole.trainer.train()
    assert told.of("step")[-1].loss == whole.of("step")[-1].loss


def test_a_legacy_file_can_be_talked_to(legacy_file: Path) -> None:
    model, tokenizer = load_for_generation(load_checkpoint(legacy_file))
    assert "".join(Completion(model, tokenizer, "QUESTION", Sampling(5, seed=1)))


@pytest.mark.parametrize("how", ["text", "stoi", "itos", "shuffled"])
def test_an_alphabet_is_understood_however_the_script_kept_it(legacy_file: Path, how: str) -> None:
    said = torch.load(legacy_file, weights_only=True)
    chars = said.pop("chars")
    if how == "shuffled":
        chars = chars[::-1]
    said |= {
        "text": {"chars": "".join(chars)},
        "stoi": {"stoi": {character: index for index, character in enumerate(chars)}},
        "itos": {"itos": dict(enumerate(chars))},
        "shuffled": {"chars": chars},
    }[how]
    torch.save(said, legacy_file)
    _, tokenizer = load_for_generation(load_checkpoint(legacy_file))
    assert tokenizer.encode("QUESTION").tolist() == [chars.index(character) for character in "QUESTION"]
    assert tokenizer.decode(tokenizer.encode("QUESTION")) == "QUESTION"


MISFITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "text": lambda _: "text",
    "something else": lambda _: {"a": 1},
    "no groups": lambda saved: {"state": {0: {"exp_avg": 1}}, "param_groups": []},
    "shapes": lambda saved: saved["state"][0].update(exp_avg=torch.zeros(3, 3, 3)),
    "a moment that is a number": lambda saved: saved["state"][0].update(exp_avg=1),
    "whole numbers": lambda saved: saved["state"][0].update(
        exp_avg=torch.zeros(saved["state"][0]["exp_avg"].shape, dtype=torch.int64)
    ),
    "a list of steps": lambda saved: saved["state"][0].update(step=[1]),
    "a moment too many": lambda saved: saved["state"][0].update(extra=torch.zeros(1)),
    "a moment too few": lambda saved: saved["state"][0].pop("exp_avg_sq"),
    "a parameter too many": lambda saved: saved["state"].update({99: saved["state"][0]}),
    "a parameter's name": lambda saved: saved["state"].update(a=saved["state"][0]),
    "a list for moments": lambda saved: saved["state"].update({0: [1]}),
    "other parameters": lambda saved: saved["param_groups"][0].update(params=[0]),
    "tensors among settings": lambda saved: saved["param_groups"][0].update(lr=[torch.zeros(2)]),
    "deep settings": lambda saved: saved["param_groups"][0].update(lr=[[1]]),
    "a group that is none": lambda saved: saved.update(param_groups=[1]),
}


@pytest.mark.parametrize("misfit", list(MISFITS))
def test_an_optimizer_state_that_does_not_fit_is_one_sentence(
    run: Any, config: Any, legacy_file: Path, misfit: str
) -> None:
    said = torch.load(legacy_file, weights_only=True)
    given = MISFITS[misfit](said["optimizer_state_dict"])
    if isinstance(given, str) or (isinstance(given, dict) and misfit in ("something else", "no groups")):
        said["optimizer_state_dict"] = given
    torch.save(said, legacy_file)
    with pytest.raises(CheckpointMismatch, match="optimizer state does not fit"):
        run(config(), resume=load_checkpoint(legacy_file))


def test_a_malicious_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    path, canary = tmp_path / "evil.pt", tmp_path / "canary"
    torch.save({"model_state_dict": {}, "step": 1, "extra": Canary(canary)}, path)
    with pytest.raises(CheckpointUnsafe, match="more than tensors"):
        load_checkpoint(path)
    assert not canary.exists()


def test_a_bare_pickle_is_refused_before_any_reader_sees_it(tmp_path: Path) -> None:
    import pickle

    path, canary = tmp_path / "bare.pt", tmp_path / "canary"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(CheckpointUnsafe, match="not a zip archive"):
        load_checkpoint(path)
    assert not canary.exists()


def test_an_archive_that_grows_when_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    with pytest.raises(CheckpointUnsafe, match="would grow"):
        load_checkpoint(path)


@pytest.mark.parametrize("content", [{}, {"model_state_dict": {"a": 1}}, {"model_state_dict": {}, "step": "x"}, [1, 2]])
def test_a_file_without_weights_or_step_is_one_sentence(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "odd.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointCorrupt):
        load_checkpoint(path)


def test_a_truncated_file_is_one_sentence(legacy_file: Path) -> None:
    legacy_file.write_bytes(legacy_file.read_bytes()[:-200])
    with pytest.raises((CheckpointUnsafe, CheckpointCorrupt)):
        load_checkpoint(legacy_file)


def open_by_script(path: Path) -> None:
    """As `CHECKPOINT_PATH=… python3 training.py` does, before it turns the error into its one sentence."""
    Console({"CHECKPOINT_PATH": str(path)}, must_resume=True)


PATHS: dict[str, Callable[[Path], object]] = {
    "script": open_by_script,
    "resume": load_checkpoint,
    "generate": open_for_generation,
    "adopt": lambda path: adopt_legacy(path, CheckpointStore(path.parent)),
}


@pytest.mark.parametrize("way", list(PATHS))
@pytest.mark.parametrize("place", ["extra", "model_state_dict", "step", "optimizer_state_dict", "hyperparameters"])
def test_no_way_to_open_a_file_runs_what_is_hidden_in_it(
    legacy_file: Path, tmp_path: Path, way: str, place: str
) -> None:
    said = torch.load(legacy_file, weights_only=True)
    canary = Canary(tmp_path / "canary")
    said[place] = {"a": canary} if place.endswith("dict") else canary
    torch.save(said, legacy_file)
    with pytest.raises(CheckpointUnsafe, match="more than tensors"):
        PATHS[way](legacy_file)
    assert not (tmp_path / "canary").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp-")] == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"vocab_size": 5}, "its vocab_size says 5, its weights have"),
        ({"hyperparameters": {"VOCAB_SIZE": 7}, "vocab_size": None}, "its vocab_size says 7, its weights have"),
        ({"chars": "abc"}, r"its weights have \d+, its alphabet has 3 tokens"),
    ],
)
def test_a_vocabulary_that_disagrees_with_the_weights_is_said(
    legacy_file: Path, change: dict[str, Any], sentence: str
) -> None:
    said = torch.load(legacy_file, weights_only=True)
    torch.save({**said, **change}, legacy_file)
    with pytest.raises(CheckpointMismatch, match=sentence):
        load_checkpoint(legacy_file)


@pytest.mark.parametrize("where", ["model_state_dict", "optimizer_state_dict"])
@pytest.mark.parametrize(
    "bomb",
    [
        torch.zeros(1).expand(10**12),
        torch.zeros(4).to_sparse(),
        torch.empty(10**12, device="meta"),
    ],
    ids=["expanded", "sparse", "meta"],
)
def test_a_tensor_that_is_not_all_there_is_refused(legacy_file: Path, where: str, bomb: torch.Tensor) -> None:
    said = torch.load(legacy_file, weights_only=True)
    if where == "model_state_dict":
        said[where]["head.bias"] = bomb
    else:
        said[where]["state"][0]["exp_avg"] = bomb
    torch.save(said, legacy_file)
    with pytest.raises((CheckpointUnsafe, CheckpointCorrupt)):
        load_checkpoint(legacy_file)


HIDING: dict[str, Callable[[torch.Tensor], Any]] = {
    "a list": lambda bomb: [bomb],
    "a pair": lambda bomb: (1, bomb),
    "lists in lists": lambda bomb: [[[[[[[{"a": (bomb,)}]]]]]]],
}


@pytest.mark.parametrize("hiding", list(HIDING))
@pytest.mark.parametrize("where", ["optimizer", "beside"])
def test_a_tensor_that_is_not_all_there_is_found_wherever_it_hides(
    run: Any, config: Any, legacy_file: Path, hiding: str, where: str
) -> None:
    said = torch.load(legacy_file, weights_only=True)
    hidden = HIDING[hiding](torch.zeros(1, dtype=torch.float64).expand(10**9))
    if where == "optimizer":
        said["optimizer_state_dict"]["state"][0]["extra"] = hidden
    else:
        said["note"] = hidden
    torch.save(said, legacy_file)
    with pytest.raises(CheckpointUnsafe, match="claim more than the file holds"):
        load_checkpoint(legacy_file)


def shared(depth: int) -> list[Any]:
    """A few lists and dicts that stand for a thousand to the power of `depth` places."""
    said: Any = torch.zeros(1)
    for _ in range(depth // 2):
        said = dict.fromkeys(map(str, range(1000)), [said] * 1000)
    for _ in range(4):
        said = dict.fromkeys(map(str, range(1000)), said)
    return [said]


@pytest.mark.parametrize("where", ["note", "config", "step", "chars", "model_state_dict", "optimizer_state_dict"])
def test_what_refers_to_itself_over_and_over_is_looked_through_once(legacy_file: Path, where: str) -> None:
    said = torch.load(legacy_file, weights_only=True)
    endless = shared(12)
    endless.append(endless)
    said[where] = {"head.bias": endless} if where == "model_state_dict" else endless
    said["extra"] = endless[0]
    torch.save(said, legacy_file)
    begun = time.monotonic()
    with suppress(CheckpointError):
        adopt_legacy(legacy_file, CheckpointStore(legacy_file.parent))
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", ["data.pkl", "DATA.PKL"])
def test_a_key_that_would_be_hashed_for_hours_is_refused(legacy_file: Path, name: str) -> None:
    twice_the_last = b"h\x01h\x01\x86q\x01"
    keys_and_values = b"()q\x01" + twice_the_last * 60 + b"K\x01u"
    with zipfile.ZipFile(legacy_file) as archive:
        entries = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(legacy_file, "w") as archive:
        for entry, content in entries.items():
            is_it = entry.endswith("data.pkl")
            archive.writestr(
                entry.replace("data.pkl", name), b"\x80\x02}" + keys_and_values + b"." if is_it else content
            )
    with pytest.raises(CheckpointUnsafe, match="tuples in one another"):
        load_checkpoint(legacy_file)


def test_more_containers_than_a_model_can_need_are_refused(legacy_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.checkpoints.legacy.MAX_ITEMS", 1000)
    load_checkpoint(legacy_file)
    said = torch.load(legacy_file, weights_only=True)
    torch.save({**said, "note": [[] for _ in range(1000)]}, legacy_file)
    with pytest.raises(CheckpointUnsafe, match="more than 1000 tensors and lists"):
        load_checkpoint(legacy_file)


@pytest.mark.parametrize(
    "odd", [{"vocab_size": 10**5000}, {"step": 10**5000}, {"learning_rate": 10**5000}, {("a", "b"): 1}]
)
def test_a_number_without_end_is_no_more_than_odd(legacy_file: Path, odd: dict[Any, Any]) -> None:
    said = torch.load(legacy_file, weights_only=True)
    torch.save({**said, **odd}, legacy_file)
    with suppress(CheckpointError, ConfigError):
        open_for_generation(legacy_file)


def test_a_name_longer_than_any_weight_has_is_refused(legacy_file: Path) -> None:
    said = torch.load(legacy_file, weights_only=True)
    said["model_state_dict"]["transformer.h.1." * 100_000] = torch.zeros(1)
    torch.save(said, legacy_file)
    with pytest.raises(CheckpointUnsafe, match="name of at most 500 characters"):
        load_checkpoint(legacy_file)


def test_more_than_tensors_can_need_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(65 << 20))
    with pytest.raises(CheckpointUnsafe, match="64 MiB beside its tensors"):
        load_checkpoint(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2000), value=st.integers(0, 255), seed=st.integers(0, 3))
def test_a_file_with_any_byte_altered_opens_or_is_one_sentence(
    tmp_path: Path, place: int, value: int, seed: int
) -> None:
    path = tmp_path / "checkpoint_bent.pt"
    torch.save({"model_state_dict": {"a": torch.ones(2)}, "step": 1, "vocab_size": 2, "chars": "ab"}, path)
    content = bytearray(path.read_bytes())
    content[place % len(content)] = value
    content[(place * 7 + seed) % len(content)] ^= seed
    path.write_bytes(content)
    with suppress(CheckpointError):
        load_checkpoint(path)


def test_the_kind_of_run_is_read_off_the_weights_where_the_file_does_not_say_it(legacy_file: Path) -> None:
    said = torch.load(legacy_file, weights_only=True)
    del said["hyperparameters"]["MODEL_TYPE"], said["hyperparameters"]["USE_LORA"]
    torch.save(said, legacy_file)
    content = load_checkpoint(legacy_file)
    assert (content["config"]["model_type"], content["config"]["use_lora"]) == ("from_scratch", False)


def test_an_alphabet_that_makes_no_sense_is_one_sentence(legacy_file: Path) -> None:
    said = torch.load(legacy_file, weights_only=True)
    for odd in ({"stoi": {"a": "x", "b": 1}}, {"itos": {"x": "a", 1: "b"}}, {"chars": [1, 2]}, {"chars": ["ab"]}):
        torch.save({**{name: value for name, value in said.items() if name != "chars"}, **odd}, legacy_file)
        with pytest.raises(CheckpointMismatch, match="which characters its tokens are"):
            open_for_generation(legacy_file)
