"""Folders of a base model, or of a checkpoint, as anyone may have made them."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.manifest import FileEntry, read_manifest
from core.checkpoints.opening import load_base, open_for_generation
from core.errors import CheckpointError, ModelUnavailable
from core.generation import Completion, Sampling
from core.machine import disk
from core.models.gpt2 import GPT2Wrapper

CODE = "import pathlib\npathlib.Path({canary!r}).mkdir()\n"
"""As a folder brings it along: whoever imports it leaves a canary."""


@pytest.fixture
def folder(gpt2_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(gpt2_folder, tmp_path / "models" / "theirs")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whom this process tries to reach."""
    found: list[Any] = []

    def refuse(*place: Any, **_: Any) -> Any:
        found.append(place)
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return found


def tell(folder: Path, name: str, **said: Any) -> None:
    path = folder / name
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**before, **said}))


def make_hostile(folder: Path, canary: Path) -> None:
    """Everything that transformers and peft would follow, in one folder."""
    for name in ("evil", "modeling_evil", "tokenization_evil", "generate"):
        (folder / f"{name}.py").write_text(CODE.format(canary=str(canary)))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(CODE.format(canary=str(canary)))
    remote = {name: f"someone/evil--evil.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    told = {"auto_map": remote, "_name_or_path": "someone/evil", "transformers_weights": "../elsewhere.safetensors"}
    told |= {"_attn_implementation": "someone/kernel", "attn_implementation": "someone/kernel", "architectures": ["E"]}
    tell(folder, "config.json", **told)
    tell(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    adapter = {
        "base_model_name_or_path": "someone/evil",
        "peft_type": "LORA",
        "auto_mapping": {"parent_library": "evil"},
    }
    (folder / "adapter_config.json").write_text(json.dumps({**adapter, "task_type": "CAUSAL_LM"}))


def reseal(checkpoint: Path) -> None:
    """Its maker can make the manifest fit, too."""
    manifest = read_manifest(checkpoint).manifest
    files = {
        path.name: FileEntry(size=path.stat().st_size, sha256=disk.digest(path, lambda: None))
        for path in checkpoint.iterdir()
        if path.is_file() and path.name != "manifest.json"
    }
    (checkpoint / "manifest.json").write_text(manifest.model_copy(update={"files": files}).to_json())


def greedy(opened: tuple[Any, Any]) -> str:
    return "".join(Completion(*opened, "QUESTION: ", Sampling(8, temperature=0)))


def test_a_base_model_that_asks_for_code_or_for_other_places_is_not_obeyed(
    folder: Path, gpt2_folder: Path, tmp_path: Path, calls: list[Any]
) -> None:
    make_hostile(folder, tmp_path / "canary")
    assert greedy(load_base("theirs", folder.parent)) == greedy(load_base(str(gpt2_folder)))
    GPT2Wrapper(folder, use_lora=True).tensors()
    assert not (tmp_path / "canary").exists()
    assert calls == []


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_lora"])
def test_a_checkpoint_that_asks_for_code_or_for_other_places_is_not_obeyed(
    run: Any, config: Any, store: CheckpointStore, tmp_path: Path, calls: list[Any], kind: str
) -> None:
    run(config(kind), store=store).trainer.train()
    checkpoint = next(iter(store)).path
    before = greedy(open_for_generation(checkpoint))
    make_hostile(checkpoint, tmp_path / "canary")
    reseal(checkpoint)
    assert greedy(open_for_generation(checkpoint)) == before
    run(config(kind), resume=load_checkpoint(checkpoint)).trainer.train()
    assert not (tmp_path / "canary").exists()
    assert calls == []


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_lora"])
def test_what_is_written_passes_nothing_of_it_on(
    run: Any, config: Any, store: CheckpointStore, folder: Path, tmp_path: Path, kind: str
) -> None:
    make_hostile(folder, tmp_path / "canary")
    run(config(kind, base_model=str(folder)), store=store).trainer.train()
    said = "".join(path.read_text() for path in next(iter(store)).path.glob("*config.json"))
    assert "evil" not in said
    assert "someone" not in said


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "another model": (lambda f: tell(f, "config.json", model_type="llama"), "its weights are not those of a 'llama'"),
    "no model_type": (lambda f: (f / "config.json").write_text("{}"), "model_type None"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "no object with settings"),
    "no json": (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
    "deep json": (lambda f: (f / "config.json").write_text("[" * 100_000), "is no JSON"),
    "endless json": (lambda f: (f / "config.json").write_text(" " * (2 << 20)), "more than 1048576 bytes"),
    "quantized": (lambda f: tell(f, "config.json", quantization_config={"bits": 4}), "quantized"),
    "a billion layers": (
        lambda f: tell(f, "config.json", n_layer=10**9),
        "says n_layer 1000000000, and it has 28 weights",
    ),
    "a wide model": (lambda f: tell(f, "config.json", n_embd=10**6), "should be (3000000,) and is (96,)"),
    "a wide layer": (lambda f: tell(f, "config.json", n_inner=10**9), "should be (1000000000,) and is (128,)"),
    "a text for a number": (lambda f: tell(f, "config.json", n_embd="32"), "field 'n_embd'"),
    "no heads": (lambda f: tell(f, "config.json", n_head=0), "does not fit its weights"),
    "odd heads": (lambda f: tell(f, "config.json", n_head=5), "does not fit its weights"),
    "no such activation": (lambda f: tell(f, "config.json", activation_function="evil"), "does not fit its weights"),
    "another layer": (lambda f: tell(f, "config.json", n_inner=64), "does not fit its weights"),
    "fewer weights": (lambda f: rewrite(f, lambda w: w.pop("transformer.ln_f.weight")), "lack transformer.ln_f.weight"),
    "no embedding": (
        lambda f: rewrite(f, lambda w: w.pop("transformer.wte.weight")),
        "lack lm_head.weight, transformer.wte.weight",
    ),
    "whole numbers": (
        lambda f: rewrite(f, lambda w: w.update(a=torch.zeros(2, dtype=torch.int64))),
        "no floating-point",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").rename(f / "other.safetensors"),
        "has no model.safetensors and no",
    ),
    "cut short": (lambda f: os.truncate(f / "model.safetensors", 100), "ends before its header does"),
    "a link": (lambda f: link(f / "model.safetensors"), "is a link"),
    "a linked config": (lambda f: link(f / "config.json"), "is a link"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer cannot be read"),
    "a linked tokenizer": (lambda f: link(f / "tokenizer.json"), "is a link"),
    "an index elsewhere": (lambda f: shard(f, {"a": "../models/other.safetensors"}), "not in the folder itself"),
    "an index of pickles": (lambda f: shard(f, {"a": "model.bin"}), "not in the folder itself"),
    "an index of numbers": (lambda f: shard(f, {"a": 1}), "does not say which file"),
    "an index of nothing": (lambda f: shard(f, []), "does not say which file"),
    "an index of what is gone": (lambda f: shard(f, {"a": "gone.safetensors"}), "No such file"),
}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    change(weights)
    save_file(weights, folder / "model.safetensors")


def link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def shard(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("what", list(WRONG))
def test_a_folder_that_cannot_be_used_is_one_sentence(folder: Path, what: str) -> None:
    spoil, said = WRONG[what]
    spoil(folder)
    with pytest.raises(ModelUnavailable) as refused:
        load_base("theirs", folder.parent)
    assert said in refused.value.message
    assert "\n" not in refused.value.message
    assert refused.value.field == "base_model"


def test_weights_in_several_files_are_one_model(folder: Path, gpt2_folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    halves = {"a": sorted(weights)[::2], "b": sorted(weights)[1::2]}
    shard(folder, {name: f"model-{half}.safetensors" for half, names in halves.items() for name in names})
    for half, names in halves.items():
        save_file({name: weights[name].clone() for name in names}, folder / f"model-{half}.safetensors")
    assert greedy(load_base("theirs", folder.parent)) == greedy(load_base(str(gpt2_folder)))
    shutil.copy(folder / "model-a.safetensors", folder / "model-c.safetensors")
    tell(folder, "model.safetensors.index.json", weight_map={"x": "model-a.safetensors", "y": "model-c.safetensors"})
    with pytest.raises(ModelUnavailable, match="two of its files have the weights"):
        load_base("theirs", folder.parent)


def test_names_masks_and_halves_as_the_first_gpt2_has_them(folder: Path, gpt2_folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    plain = {name.removeprefix("transformer."): tensor.half() for name, tensor in weights.items()}
    save_file({**plain, "h.0.attn.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)}, folder / "model.safetensors")
    theirs, whole = GPT2Wrapper(folder).tensors(), GPT2Wrapper(gpt2_folder).tensors()
    assert theirs.keys() == whole.keys()
    assert all(torch.equal(theirs[name], whole[name].half().float()) for name in whole)


def test_the_links_of_the_hubs_cache_are_followed_and_no_others(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--theirs" / "snapshots" / "1234"
    shutil.copytree(folder, snapshot)
    (snapshot.parent.parent / "blobs").mkdir()
    for path in list(snapshot.iterdir()):
        blob = snapshot.parent.parent / "blobs" / f"hash-of-{path.name}"
        path.rename(blob)
        path.symlink_to(Path("..", "..", "blobs", blob.name))
    assert greedy(load_base(str(snapshot))) == greedy(load_base(str(folder)))
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(ModelUnavailable, match="is a link"):
        load_base(str(snapshot))


def test_a_base_model_outside_the_root_is_refused(folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match="leads out of the models root"):
        load_base("../theirs", folder)


def test_what_trains_has_memory_of_its_own(folder: Path) -> None:
    pages = Path("/proc/self/maps")
    model = GPT2Wrapper(folder)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in model.parameters())
    assert not pages.exists() or str(folder) not in pages.read_text()


HOSTILE_SIZES = {
    "manifest.json": b'{"id": "' + b"x" * (2 << 20) + b'"}',
    "state.json": b" " * (65 << 20),
    "characters.json": b" " * (33 << 20),
}


@pytest.mark.parametrize("name", list(HOSTILE_SIZES))
def test_a_file_that_should_be_small_is_not_read_when_it_is_not(
    run: Any, config: Any, store: CheckpointStore, name: str
) -> None:
    run(config(), store=store).trainer.train()
    checkpoint = next(iter(store)).path
    (checkpoint / name).write_bytes(HOSTILE_SIZES[name])
    if name != "manifest.json":
        reseal(checkpoint)
    with pytest.raises(CheckpointError, match=f"{name}' has more than"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "{}", '{"run": 1, "optimizer": 2}'])
def test_a_state_that_makes_no_sense_is_one_sentence(run: Any, config: Any, store: CheckpointStore, text: str) -> None:
    run(config(), store=store).trainer.train()
    checkpoint = next(iter(store)).path
    (checkpoint / "state.json").write_text(text)
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_a_hostile_tensor_file_in_a_checkpoint_is_refused_whatever_its_manifest_says(
    run: Any, config: Any, store: CheckpointStore, name: str
) -> None:
    run(config(), store=store).trainer.train()
    checkpoint = next(iter(store)).path
    (checkpoint / name).write_bytes(b"\xff" * 8 + b"{}")
    reseal(checkpoint)
    with pytest.raises(CheckpointError, match="its header claims"):
        load_checkpoint(checkpoint)
