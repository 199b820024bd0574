from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from core.checkpointing import CheckpointStore
from core.checkpoints.export import export
from core.checkpoints.opening import load_base, open_for_generation
from core.errors import CheckpointCorrupt, CheckpointMismatch, DiskFull, ExportUnsupported, ModelExists
from core.machine import disk
from tests.unit.core.conftest import KINDS

IDS_BT = torch.arange(12)[None]

quiet = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def trained(run: Any, config: Any, store: CheckpointStore, gpt2_folder: Path) -> Any:
    """The final checkpoint of a short run of that kind."""

    def trained(kind: str) -> Path:
        run(config(kind, learning_rate=1e-2, lora_dropout=0.0), store=store).trainer.train()
        return next(iter(store)).path

    return trained


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def logits(network: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = network.eval()(input_ids=IDS_BT).logits
        return found


def ours(checkpoint: Path) -> torch.Tensor:
    model, _ = open_for_generation(checkpoint)
    return logits(model.network)


def test_a_full_model_is_loaded_by_plain_transformers_to_the_last_bit(trained: Any, models: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = trained("gpt2")
    done = export(checkpoint, models)
    assert done.name == checkpoint.name.removeprefix("checkpoint_")
    assert (done.kind, done.path) == ("model", done.name)
    folder = models / done.path
    assert done.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    weights = open_for_generation(checkpoint)[0].network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in theirs.state_dict().items())
    # GELU is rounded otherwise here, see `core.models.kernels`.
    torch.testing.assert_close(logits(theirs), ours(checkpoint), rtol=1e-5, atol=1e-6)
    text = "QUESTION: What is 3 plus 4?"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == open_for_generation(checkpoint)[1].encode(text).tolist()
    assert list(models.iterdir()) == [folder]
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


@quiet
def test_adapters_are_loaded_by_plain_peft_with_the_same_logits(trained: Any, models: Path, gpt2_folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    checkpoint = trained("gpt2_lora")
    done = export(checkpoint, models, "mine")
    assert (done.name, done.kind) == ("mine", "adapter")
    base = AutoModelForCausalLM.from_pretrained(gpt2_folder)
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, models / "mine")
    torch.testing.assert_close(logits(loaded), ours(checkpoint), rtol=0, atol=1e-6)
    assert not torch.allclose(before, ours(checkpoint), atol=1e-4)


def test_merged_adapters_are_a_plain_model_within_1e_5(trained: Any, models: Path) -> None:
    from transformers import AutoModelForCausalLM

    checkpoint = trained("gpt2_lora")
    done = export(checkpoint, models, merge=True)
    assert done.kind == "model"
    assert done.name.endswith("_merged")
    assert not list((models / done.name).glob("adapter*"))
    loaded = AutoModelForCausalLM.from_pretrained(models / done.name)
    torch.testing.assert_close(logits(loaded), ours(checkpoint), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gpt2_lora"])
def test_what_was_exported_is_the_base_of_a_new_run_at_once(
    run: Any, config: Any, trained: Any, models: Path, kind: str
) -> None:
    checkpoint = trained(kind)
    done = export(checkpoint, models, merge=True)
    model, _ = load_base(done.name, models)
    torch.testing.assert_close(logits(model.network), ours(checkpoint), rtol=0, atol=1e-5)
    told = run(config("gpt2", base_model=done.name), models_root=models)
    told.trainer.train()
    assert told.trainer.run.step == 8


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.startswith("from_scratch")])
def test_a_model_from_scratch_is_told_to_be_downloaded(trained: Any, models: Path, kind: str) -> None:
    with pytest.raises(ExportUnsupported, match="no class: download its folder instead"):
        export(trained(kind), models)
    assert not models.exists()


def test_a_name_that_is_taken_stays_as_it_is(trained: Any, models: Path) -> None:
    checkpoint = trained("gpt2")
    models.mkdir()
    (models / "empty").mkdir()
    (models / "dangling").symlink_to(models / "nowhere")
    export(checkpoint, models, "mine")
    before = (models / "mine" / "model.safetensors").stat().st_mtime_ns
    for name in ("mine", "empty", "dangling"):
        with pytest.raises(ModelExists, match=f"'{name}' already"):
            export(checkpoint, models, name)
    assert (models / "mine" / "model.safetensors").stat().st_mtime_ns == before
    assert sorted(path.name for path in models.iterdir()) == ["dangling", "empty", "mine"]


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "tmp-mine", "", "a..b", "x" * 201, "ü"])
def test_a_name_that_no_request_could_use_is_refused(trained: Any, models: Path, name: str) -> None:
    checkpoint = trained("gpt2")
    if name:
        with pytest.raises(ExportUnsupported, match="cannot be named"):
            export(checkpoint, models, name)
        assert not models.exists()
    else:
        assert export(checkpoint, models, name).name == checkpoint.name.removeprefix("checkpoint_")


def test_where_there_is_no_room_nothing_is_begun(trained: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained("gpt2")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 1 << 30, 1 << 20))  # type: ignore[attr-defined]
    with pytest.raises(DiskFull, match="model 'mine' could not be written below the models root"):
        export(checkpoint, models, "mine")
    assert list(models.iterdir()) == []


def test_an_export_that_fails_leaves_nothing(trained: Any, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = trained("gpt2")

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "sync_file", full)
        with pytest.raises(DiskFull):
            export(checkpoint, models, "mine")
    assert list(models.iterdir()) == []
    export(checkpoint, models, "mine")


def test_what_a_killed_export_left_goes_with_a_later_one(trained: Any, models: Path) -> None:
    for name, age in (("tmp-export-old", 100_000), ("tmp-export-new", 0), ("tmp-other", 100_000)):
        (models / name).mkdir(parents=True)
        moment = (models / name).stat().st_mtime - age
        os.utime(models / name, (moment, moment))
    export(trained("gpt2"), models, "mine")
    assert sorted(path.name for path in models.iterdir()) == ["mine", "tmp-export-new", "tmp-other"]


def test_a_damaged_checkpoint_is_not_exported(trained: Any, models: Path) -> None:
    checkpoint = trained("gpt2")
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors is not what was saved"):
        export(checkpoint, models)
    assert not models.exists()


def test_adapters_are_not_merged_into_a_base_whose_weights_changed(
    run: Any, config: Any, store: CheckpointStore, gpt2_folder: Path, models: Path
) -> None:
    base = shutil.copytree(gpt2_folder, models / "base")
    run(config("gpt2_lora", base_model=str(base)), store=store).trainer.train()
    checkpoint = next(iter(store)).path
    export(checkpoint, models, "true", merge=True)
    content = bytearray((base / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (base / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointMismatch, match="were trained on: its weights changed"):
        export(checkpoint, models, "false", merge=True)
    assert sorted(path.name for path in models.iterdir()) == ["base", "true"]


def test_a_tokenizer_with_several_chat_templates_is_saved_and_exported_in_plain_files(
    run: Any, config: Any, store: CheckpointStore, gpt2_folder: Path, models: Path
) -> None:
    from transformers import AutoTokenizer

    base = shutil.copytree(gpt2_folder, models / "base")
    said = json.loads((base / "tokenizer_config.json").read_text())
    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    said["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    (base / "tokenizer_config.json").write_text(json.dumps(said))
    for kind in ("gpt2", "gpt2_lora"):
        run(config(kind, base_model=str(base)), store=store).trainer.train()
        checkpoint = next(iter(store)).path
        done = export(checkpoint, models, kind)
        for folder in (checkpoint, models / done.path):
            assert all(path.is_file() for path in folder.iterdir())
            assert AutoTokenizer.from_pretrained(folder).chat_template == templates
