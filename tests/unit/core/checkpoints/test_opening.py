from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from core.bases import fingerprints
from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints import opening
from core.checkpoints.manifest import MANIFEST, read_manifest
from core.checkpoints.opening import load_base, load_for_generation, open_for_generation
from core.errors import CheckpointCorrupt, CheckpointMismatch, ModelUnavailable
from core.machine import disk
from core.models import LanguageModel
from tests.unit.core.conftest import KINDS


@pytest.fixture
def trained(run: Any, config: Any, store: CheckpointStore) -> Any:
    """A run of that kind and its final checkpoint."""

    def trained(kind: str) -> tuple[LanguageModel, Path]:
        told = run(config(kind), store=store)
        told.trainer.train()
        return told.trainer.parts.model.eval(), next(iter(store)).path

    return trained


def logits(model: LanguageModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(12)[None])[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_opened_checkpoint_is_the_model_that_was_trained(trained: Any, kind: str) -> None:
    model, path = trained(kind)
    opened, tokenizer = open_for_generation(path)
    assert not opened.training
    torch.testing.assert_close(logits(opened), logits(model), rtol=0, atol=1e-6)
    assert tokenizer.decode(tokenizer.encode("QUESTION")) == "QUESTION"
    in_memory, _ = load_for_generation(load_checkpoint(path))
    assert torch.equal(logits(in_memory), logits(opened))


@pytest.mark.parametrize("kind", list(KINDS))
def test_only_what_answers_a_prompt_is_verified_and_read(
    trained: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = trained(kind)
    for name in opening._NOT_ASKED_FOR:
        (path / name).write_bytes(b"not what was saved")
    read: list[str] = []
    digest = disk.digest
    monkeypatch.setattr(disk, "digest", lambda path, meanwhile: read.append(path.name) or digest(path, meanwhile))
    open_for_generation(path)
    assert len(read) == len(set(read))
    assert opening._NOT_ASKED_FOR.isdisjoint(read)
    assert any(name.endswith("model.safetensors") for name in read)


@pytest.mark.parametrize("kind", list(KINDS))
def test_each_file_that_answers_a_prompt_is_verified(trained: Any, kind: str) -> None:
    _, path = trained(kind)
    asked_for = {item.name for item in path.iterdir()} - {"manifest.json"} - opening._NOT_ASKED_FOR
    for name in asked_for:
        content = (path / name).read_bytes()
        (path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(CheckpointCorrupt, match=f"{re.escape(name)} is not what was saved"):
            open_for_generation(path)
        (path / name).write_bytes(content)
    open_for_generation(path)


@pytest.mark.parametrize("kind", ["from_scratch", "from_scratch_lora", "gpt2"])
def test_no_random_weights_are_made(trained: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = trained(kind)
    before = torch.get_rng_state()
    open_for_generation(path)
    assert torch.equal(torch.get_rng_state(), before)


def pages_of(path: Path) -> list[range]:
    """Where a file is mapped into this process."""
    found = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, last = line.split()[0].split("-")
            found.append(range(int(first, 16), int(last, 16)))
    return found


def assert_lies_in(tensors: list[torch.Tensor], path: Path) -> None:
    pages = pages_of(path)
    assert all(any(tensor.data_ptr() in part for part in pages) for tensor in tensors)


@pytest.mark.skipif(sys.platform != "linux", reason="tells a process's pages as Linux does")
@pytest.mark.skipif(torch.cuda.is_available(), reason="weights are copied to the GPU")
def test_weights_are_the_pages_of_their_file(trained: Any, gpt2_folder: Path) -> None:
    for kind in ("from_scratch", "from_scratch_lora", "gpt2"):
        _, path = trained(kind)
        model, _ = open_for_generation(path)
        assert_lies_in(list(model.parameters()), path / "model.safetensors")
    base, _ = load_base(str(gpt2_folder))
    assert_lies_in(list(base.parameters()), gpt2_folder / "model.safetensors")
    adapted, _ = open_for_generation(trained("gpt2_lora")[1])
    frozen = [parameter for name, parameter in adapted.named_parameters() if "lora_" not in name]
    assert_lies_in(frozen, gpt2_folder / "model.safetensors")


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2"])
def test_what_is_done_to_an_opened_model_never_reaches_its_file(trained: Any, kind: str) -> None:
    _, path = trained(kind)
    before = (path / "model.safetensors").read_bytes()
    model, _ = open_for_generation(path)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    assert (path / "model.safetensors").read_bytes() == before


def test_the_files_that_are_left_out_are_those_of_a_run_that_goes_on(trained: Any) -> None:
    _, path = trained("gpt2")
    assert {item.name for item in path.iterdir()} >= opening._NOT_ASKED_FOR


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("from_scratch", "model.safetensors"),
        ("from_scratch", "characters.json"),
        ("gpt2", "model.safetensors"),
        ("gpt2", "config.json"),
        ("gpt2_lora", "adapter_model.safetensors"),
    ],
)
def test_a_file_that_no_manifest_vouches_for_is_not_read(trained: Any, kind: str, name: str) -> None:
    _, path = trained(kind)
    manifest = read_manifest(path).manifest
    files = {key: entry for key, entry in manifest.files.items() if key != name}
    (path / MANIFEST).write_text(manifest.model_copy(update={"files": files}).to_json())
    with pytest.raises(CheckpointCorrupt, match=f"lacks its file {re.escape(name)}"):
        open_for_generation(path)


@pytest.fixture
def base(gpt2_folder: Path, tmp_path: Path) -> Path:
    """A base model that may be changed."""
    return shutil.copytree(gpt2_folder, tmp_path / "models" / "mine")


@pytest.fixture
def adapters(run: Any, config: Any, store: CheckpointStore, base: Path) -> Path:
    """A checkpoint of adapters on it."""
    run(config("gpt2_lora", base_model=str(base)), store=store).trainer.train()
    return next(iter(store)).path


@pytest.mark.parametrize(("file", "what"), [("config.json", "architecture"), ("tokenizer.json", "tokenizer")])
def test_adapters_are_not_asked_on_a_base_that_is_another_one_by_now(
    adapters: Path, base: Path, file: str, what: str
) -> None:
    (base / file).write_text((base / file).read_text() + "\n")
    for ask in (open_for_generation, lambda path: load_for_generation(load_checkpoint(path))):
        with pytest.raises(CheckpointMismatch, match=f"were trained on: its {what} changed") as refused:
            ask(adapters)
        assert refused.value.field == "base_model"


def test_large_files_of_the_base_are_not_read_twice_to_answer_a_prompt(
    adapters: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(fingerprints, "digest", lambda path, _: read.append(path.name) or "")
    with pytest.raises(CheckpointMismatch):
        open_for_generation(adapters)
    assert set(read) == {"config.json", "tokenizer.json"}


def test_a_base_that_the_disk_does_not_give_is_one_sentence(adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(fingerprints, "digest", broken)
    with pytest.raises(ModelUnavailable, match="cannot be read: Input/output error"):
        open_for_generation(adapters)
