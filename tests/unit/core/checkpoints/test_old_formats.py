"""What was ever written still opens: the fixtures' README says how they were made."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from core.assembly import assemble
from core.checkpointing import CheckpointStore, load_checkpoint, verify
from core.checkpoints.manifest import read_manifest
from core.checkpoints.opening import adopt_legacy, load_for_generation, open_for_generation
from core.config import load_config_from_checkpoint
from core.generation import Completion, Sampling
from core.sources.files import read_source
from tests.conftest import PROJECT

FIXTURES = PROJECT / "tests" / "fixtures" / "checkpoints"

# Text after "QUESTION: ", and the loss of the first step after a resume.
SAID = {
    "from_scratch": ("What is 5 plus 0", 0.2905382),
    "from_scratch_lora": ("What is plus plu", 0.3849217),
    "gpt2": ("What is 0 plus 5?\nANSWER:", 0.4223689),
    "gpt2_lora": ("atpluatplu", 4.9292865),
}

FOLDERS = sorted(path.name for path in (FIXTURES / "format_1").iterdir())
FILES = sorted(path.name for path in (FIXTURES / "legacy").iterdir())
EVERY = [*(f"format_1/{name}" for name in FOLDERS), *(f"legacy/{name}" for name in FILES)]


@pytest.fixture(autouse=True)
def _beside_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES)


def expected(path: str) -> tuple[str, float]:
    kind = Path(path).name.removeprefix("checkpoint_").partition("_sums")[0]
    return SAID[kind]


def greedy(path: Path) -> str:
    model, tokenizer = open_for_generation(path, FIXTURES / "models")
    return "".join(Completion(model, tokenizer, "QUESTION: ", Sampling(16, temperature=0)))


def test_there_is_one_of_each() -> None:
    assert len(FOLDERS) == 4
    assert len(FILES) == 5


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_of_an_earlier_release_verifies(name: str) -> None:
    verify(read_manifest(FIXTURES / "format_1" / name))


@pytest.mark.parametrize("path", EVERY)
def test_it_writes_the_text_that_it_wrote_when_it_was_made(path: str) -> None:
    text, _ = expected(path)
    assert greedy(FIXTURES / path).startswith(text)


@pytest.mark.parametrize("path", EVERY)
def test_a_checkpoint_in_memory_is_asked_like_its_file(path: str) -> None:
    model, tokenizer = load_for_generation(load_checkpoint(FIXTURES / path), FIXTURES / "models")
    text = "".join(Completion(model, tokenizer, "QUESTION: ", Sampling(16, temperature=0)))
    assert text == greedy(FIXTURES / path)


@pytest.mark.parametrize("path", EVERY)
def test_a_run_goes_on_from_it_with_the_loss_it_would_have_had(path: str) -> None:
    content = load_checkpoint(FIXTURES / path)
    settings, _ = load_config_from_checkpoint(content, {"RESUME_STEPS": "1", "CHECKPOINT_INTERVAL": "1000"})
    events: list[Any] = []
    assemble(
        settings.training(),
        read_source("sums.md"),
        events.append,
        lambda: False,
        resume=content,
        models_root=FIXTURES / "models",
    ).train()
    (step,) = [event for event in events if event.kind == "step"]
    assert step.step == 301
    assert step.loss == pytest.approx(expected(path)[1], abs=1e-4)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_the_older_scripts_becomes_a_checkpoint_that_says_the_same(tmp_path: Path, name: str) -> None:
    shutil.copy(FIXTURES / "legacy" / name, tmp_path)
    adopted = adopt_legacy(tmp_path / name, CheckpointStore(tmp_path), FIXTURES / "models")
    verify(adopted)
    assert greedy(adopted.path) == greedy(tmp_path / name)
