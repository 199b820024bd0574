"""What is said of models without opening them: true of those that can be used, and a reason for those that cannot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.bases import at_hand
from core.bases.at_hand import ModelAtHand, models_at_hand
from core.bases.hub_cache import cache_root
from core.models.base import find_base
from core.models.causal_lm import CausalLM
from tests.conftest import PROJECT
from tests.gguf_files import make_gguf

NOWHERE = Path("/nowhere")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def look(root: Path, cache: Path = NOWHERE) -> dict[str, ModelAtHand]:
    return {found.name: found for found in models_at_hand(root, cache)}


def one(folder: Path) -> ModelAtHand:
    """The only model below the folder's parent."""
    (found,) = models_at_hand(folder.parent, NOWHERE)
    return found


@pytest.fixture
def theirs(llama_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_folder, tmp_path / "models" / "theirs")


def test_what_is_said_of_a_folder_is_what_its_model_turns_out_to_be(theirs: Path) -> None:
    model = CausalLM(find_base("theirs", theirs.parent))
    assert one(theirs) == ModelAtHand(
        name="theirs",
        source="folder",
        family="llama",
        size_bytes=(theirs / "model.safetensors").stat().st_size,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        max_context=model.max_context,
    )


def test_what_is_said_of_a_gguf_file_is_what_its_model_turns_out_to_be(gguf_path: Path) -> None:
    model = CausalLM(gguf_path.parent)
    assert one(gguf_path.parent) == ModelAtHand(
        name="packed",
        source="folder",
        family="llama",
        size_bytes=gguf_path.stat().st_size,
        num_parameters=sum(weight.numel() for weight in model.parameters()),
        max_context=model.max_context,
        has_chat_template=True,
    )


@pytest.fixture
def gguf_path(llama_folder: Path, tmp_path: Path) -> Path:
    return make_gguf(tmp_path / "models" / "packed", llama_folder)


def test_names_are_those_that_a_run_takes(theirs: Path) -> None:
    root = theirs.parent
    shutil.copytree(theirs, root / "org" / "model")
    assert list(look(root)) == ["org/model", "theirs"]
    for name in look(root):
        assert find_base(name, root) == root / name


def test_folders_that_are_no_models_are_left_out(theirs: Path) -> None:
    root = theirs.parent
    shutil.copytree(theirs, root / "tmp-export-123")
    shutil.copytree(theirs, root / ".hidden")
    shutil.copytree(theirs, root / "a" / "b" / "too-deep")
    (root / "notes").mkdir()
    (root / "README.md").write_text("x")
    assert list(look(root)) == ["theirs"]


def test_no_models_root_is_no_models(tmp_path: Path) -> None:
    assert models_at_hand(tmp_path / "none", tmp_path / "none") == []


@pytest.mark.parametrize("is_in_config", [True, False])
def test_a_template_for_conversations_is_found_in_both_places(theirs: Path, is_in_config: bool) -> None:
    if is_in_config:
        path = theirs / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ messages }}"}))
    else:
        (theirs / "chat_template.jinja").write_text("{{ messages }}")
    assert one(theirs).has_chat_template


def configure(**changes: object) -> Callable[[Path], object]:
    def configure(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return configure


def cut(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(1000)


def become_a_link(folder: Path) -> None:
    (folder / "config.json").rename(folder / "elsewhere")
    (folder / "config.json").symlink_to(folder / "elsewhere")


def become_adapters(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def become_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def claim_a_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def grow(folder: Path) -> None:
    (folder / "config.json").write_bytes(b" " * (2 << 20))


UNUSABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "it has no *.safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "its config.json is no JSON"),
    "a deep JSON": (lambda folder: (folder / "config.json").write_text("[" * 500_000), "its config.json is no JSON"),
    "no object": (lambda folder: (folder / "config.json").write_text("[]"), "no object with settings"),
    "no family": (configure(model_type=7), "does not say a model_type"),
    "quantized": (configure(quantization_config={"bits": 4}), "are quantized"),
    "cut short": (cut, "no valid safetensors file"),
    "a header without end": (claim_a_header, "its header claims"),
    "a link": (become_a_link, "is a link"),
    "adapters": (become_adapters, "it holds adapters"),
    "a pickle": (become_a_pickle, "pickles, which are never opened"),
    "a large configuration": (grow, "more than 1048576 bytes"),
    "an unknown GGUF file": (
        lambda folder: [(folder / "model.safetensors").unlink(), (folder / "x.gguf").write_bytes(b"GGUF")],
        "no valid GGUF file",
    ),
}


@pytest.mark.parametrize("name", list(UNUSABLE))
def test_a_folder_that_cannot_be_used_says_why_and_the_others_are_listed(theirs: Path, name: str) -> None:
    change, said = UNUSABLE[name]
    shutil.copytree(theirs, theirs.parent / "whole")
    change(theirs)
    found = look(theirs.parent)
    assert said in (found["theirs"].error or "")
    assert "\n" not in (found["theirs"].error or "")
    assert str(theirs) not in (found["theirs"].error or "")
    assert found["whole"].error is None


def test_a_gguf_file_of_another_architecture_says_so(llama_folder: Path, tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "models" / "packed", llama_folder, general__architecture="falcon")
    assert "architecture 'falcon'" in (one(path.parent).error or "")


def test_a_name_that_is_no_text_is_shown_and_explained(theirs: Path) -> None:
    os.rename(theirs, os.fsencode(theirs.parent) + b"/caf\xe9")  # noqa: PTH104  # a Path would not say bytes
    found = one(theirs)
    assert found.name.encode() == b"caf\\udce9"
    assert "not UTF-8" in (found.error or "")


def test_facts_are_taken_anew_when_a_file_has_changed(theirs: Path) -> None:
    assert one(theirs).max_context == 64
    configure(max_position_embeddings=128)(theirs)
    assert one(theirs).max_context == 128


def test_facts_of_files_that_stay_are_not_read_again(theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = one(theirs)

    def never(*_: object, **__: object) -> object:
        raise AssertionError("read again")

    monkeypatch.setattr(at_hand, "read_plain", never)
    monkeypatch.setattr(at_hand, "open_plain", never)
    assert one(theirs) == before


def lay_into_cache(cache: Path, folder: Path, name: str = "models--org--model") -> Path:
    """As the hub's library does: blobs, and links to them."""
    snapshot, blobs = cache / name / "snapshots" / REVISION, cache / name / "blobs"
    for made in (snapshot, blobs, cache / name / "refs"):
        made.mkdir(parents=True)
    (cache / name / "refs" / "main").write_text(REVISION)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, blobs / f"{number:064}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{number:064}")
    return snapshot


def test_what_lies_in_the_cache_is_listed_by_its_name_on_the_hub(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    lay_into_cache(tmp_path / "cache", llama_folder)
    (found,) = models_at_hand(tmp_path / "models")
    assert (found.name, found.source, found.family, found.error) == ("org/model", "cache", "llama", None)
    assert found.size_bytes == (llama_folder / "model.safetensors").stat().st_size


def test_a_cache_that_was_tampered_with_leads_nowhere_else(llama_folder: Path, tmp_path: Path) -> None:
    snapshot = lay_into_cache(tmp_path / "cache", llama_folder)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(llama_folder / "config.json")
    (found,) = models_at_hand(tmp_path / "models", tmp_path / "cache")
    assert "is a link" in (found.error or "")
    (tmp_path / "cache" / "models--org--model" / "refs" / "main").write_text("../../../..")
    assert models_at_hand(tmp_path / "models", tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c"}, "/c/huggingface/hub"),
        ({}, str(Path("~/.cache/huggingface/hub").expanduser())),
    ],
)
def test_the_cache_is_where_the_library_has_it(said: dict[str, str], found: str) -> None:
    assert cache_root(said) == Path(found)
    program = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_", "HUGGINGFACE_"))}
    done = subprocess.run([sys.executable, "-c", program], env={**kept, **said}, capture_output=True, check=True)
    assert done.stdout.decode().strip() == found


def test_a_list_needs_no_torch() -> None:
    program = (
        "import sys, core.bases.at_hand\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'transformers', 'huggingface_hub')))"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


def test_a_large_model_takes_no_longer_than_a_small_one(theirs: Path) -> None:
    """The list reads headers: 64 GiB of weights, which are a hole here, are not looked at."""
    path = theirs / "model.safetensors"
    num_bytes = 1 << 36
    header = {"w": {"dtype": "F32", "shape": [num_bytes // 4], "data_offsets": [0, num_bytes]}}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + num_bytes)
    assert one(theirs).num_parameters == num_bytes // 4
