from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpointing import load_checkpoint
from core.config import config_to_dict, load_config_from_checkpoint
from core.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointUnsafe
from core.generation import Completion, Sampling
from core.opening import load_for_generation


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
    settings, _ = load_config_from_checkpoint(content, {"RESUME_STEPS": "3"})
    assert (settings.start_step, settings.training_steps, settings.n_embd) == (4, 3, 16)
    told = run(settings.training(), resume=content)
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


@pytest.mark.parametrize("state", ["text", {"a": 1}, {"state": {0: {"exp_avg": 1}}, "param_groups": []}, "shapes"])
def test_an_optimizer_state_that_does_not_fit_is_one_sentence(
    run: Any, config: Any, legacy_file: Path, state: Any
) -> None:
    said = torch.load(legacy_file, weights_only=True)
    if state == "shapes":
        for moments in said["optimizer_state_dict"]["state"].values():
            moments["exp_avg"] = torch.zeros(3, 3, 3)
    else:
        said["optimizer_state_dict"] = state
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
