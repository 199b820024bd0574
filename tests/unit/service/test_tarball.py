from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore, verify
from core.checkpoints.manifest import Checkpoint, new_manifest, read_manifest
from core.errors import CheckpointCorrupt
from core.machine.disk import CHUNK_BYTES
from service import tarball
from service.tarball import Tarball

Publish = Callable[..., Checkpoint]

WEIGHTS = os.urandom(3 * CHUNK_BYTES // 2)

FILES = {"model.safetensors": WEIGHTS, "state.json": b"{}", "empty.txt": b"", "block": b"x" * 512}


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    def publish(files: dict[str, bytes] = FILES, model: str = "Bigram") -> Checkpoint:
        def write(folder: Path) -> None:
            for name, content in files.items():
                (folder / name).write_bytes(content)

        manifest = new_manifest(model=model, source="tale.md", step=1, end_step=2, config={})
        return CheckpointStore(tmp_path / "checkpoints").publish(manifest, write)

    return publish


def tar_of(saved: Checkpoint) -> Tarball:
    return Tarball(saved.path.parent, saved.path.name)


def num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # as short as the question


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = num_open_files()
    yield
    assert num_open_files() == before


@pytest.mark.parametrize("model", ["Bigram", "M" * 150], ids=["short", "longer-than-a-tar-header-has-room-for"])
def test_what_is_unpacked_verifies_and_has_the_length_that_was_said(
    publish: Publish, tmp_path: Path, model: str
) -> None:
    saved = publish(model=model)
    (saved.path / "PINNED").touch()
    (saved.path / "notes.txt").write_text("mine")
    with tar_of(saved) as tar:
        assert tar.verify()
        pieces = list(tar.chunks())
        assert sum(map(len, pieces)) == tar.size
    assert max(map(len, pieces)) <= CHUNK_BYTES
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as unpacked:
        unpacked.extractall(tmp_path / "there", filter="data")
    (folder,) = (tmp_path / "there").iterdir()
    assert folder.name == saved.path.name
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *FILES}
    verify(read_manifest(folder))


def put_in_place(saved: Checkpoint, kind: str) -> str:
    """Something else where the state was, and what is said of it."""
    place = saved.path / "state.json"
    if kind == "altered":
        place.write_bytes(b"[]")
        return "damaged: state.json"
    place.unlink()
    if kind == "cut-short":
        place.write_bytes(b"{")
        return "damaged: state.json"
    if kind == "link":
        (saved.path.parent / "elsewhere").write_bytes(b"{}")
        place.symlink_to("../elsewhere")
        return r"state.json cannot be opened: Too many levels"
    if kind == "pipe":
        os.mkfifo(place)
        return "state.json is no regular file"
    if kind == "folder":
        place.mkdir()
        return "state.json is no regular file"
    return r"state.json cannot be opened: No such file"


@pytest.mark.parametrize("kind", ["altered", "cut-short", "missing", "link", "pipe", "folder"])
def test_a_file_that_is_not_what_was_saved_is_named(publish: Publish, kind: str) -> None:
    saved = publish()
    said = put_in_place(saved, kind)
    with pytest.raises(CheckpointCorrupt, match=said), tar_of(saved) as tar:
        tar.verify()


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "a/b", "nul\x00"])
def test_a_manifest_names_nothing_outside_its_folder(publish: Publish, name: str) -> None:
    saved = publish()
    (saved.path.parent / "secret").write_bytes(b"{}")
    lying = saved.manifest.model_copy(update={"files": {name: saved.manifest.files["state.json"]}})
    (saved.path / "manifest.json").write_text(lying.to_json())
    with pytest.raises(CheckpointCorrupt, match=r"it cannot have a file|no regular file|no name that a file can"):
        tar_of(saved)


def test_a_manifest_that_makes_no_sense_is_said(publish: Publish) -> None:
    saved = publish()
    (saved.path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointCorrupt, match="manifest cannot be understood"):
        tar_of(saved)


def test_a_manifest_of_more_files_than_a_checkpoint_has_opens_none(
    publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarball, "MAX_FILES", 3)
    with pytest.raises(CheckpointCorrupt, match="lists 4 files"):
        tar_of(publish())


@pytest.mark.parametrize("name", ["gone", "link", "../checkpoints", "", "..", "a/b", "nul\x00"])
def test_a_folder_that_is_none_is_said(publish: Publish, name: str) -> None:
    saved = publish()
    (saved.path.parent / "link").symlink_to(saved.path)
    with pytest.raises(CheckpointCorrupt, match=r"folder"):
        Tarball(saved.path.parent, name)


def test_a_checkpoint_that_is_removed_meanwhile_is_still_sent_whole(publish: Publish) -> None:
    saved = publish()
    with tar_of(saved) as tar:
        CheckpointStore(saved.path.parent).retire(saved.path.name)
        assert tar.verify()
        assert sum(map(len, tar.chunks())) == tar.size


@pytest.mark.parametrize("change", ["altered", "cut-short"])
def test_the_end_of_a_file_that_changes_meanwhile_is_never_sent(publish: Publish, change: str) -> None:
    saved = publish()
    sent: list[bytes] = []
    with tar_of(saved) as tar:
        assert tar.verify()
        chunks = tar.chunks()
        with (saved.path / "model.safetensors").open("r+b") as file:
            if change == "altered":
                file.seek(CHUNK_BYTES)
                file.write(b"otherwise")
            else:
                file.truncate(CHUNK_BYTES + 1)
        with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors is not what was saved"):
            sent.extend(chunks)
    received = b"".join(sent)
    assert WEIGHTS[-100:] not in received
    assert len(received) < tar.size


def test_a_check_that_nobody_waits_for_is_given_up(publish: Publish) -> None:
    with tar_of(publish()) as tar:
        asked: list[Any] = []
        assert not tar.verify(lambda: bool(asked.append(1)))
        assert len(asked) == 1
