"""A disk that does not give a file now is another thing than a file that is not as it was saved."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore, first_whole, looks_whole, verify
from core.checkpoints.manifest import Checkpoint, new_manifest, read_manifest
from core.errors import CheckpointCorrupt, StorageError
from core.machine import disk
from core.machine.disk import unreadable
from core.machine.outside import read_plain


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path)


@pytest.fixture
def saved(store: CheckpointStore) -> Checkpoint:
    manifest = new_manifest(model="m", source="s", step=1, end_step=2, config={})
    return store.publish(manifest, lambda folder: (folder / "weights").write_bytes(b"w") and None)


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    number = getattr(errno, code)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("core.machine.outside.os.open", refuse)


@pytest.mark.parametrize("code", ["EIO", "EACCES", "EMFILE", "ESTALE"])
def test_a_file_that_the_disk_does_not_give_now_is_not_called_damaged(
    store: CheckpointStore, saved: Checkpoint, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    refuse_to_open(monkeypatch, code)
    with pytest.raises(StorageError) as told:
        read_manifest(saved.path)
    assert str(store.root) not in told.value.message
    assert list(store) == [], "whoever lists leaves it out"


@pytest.mark.parametrize("code", ["ENOENT", "ENOTDIR", "ELOOP", "EISDIR"])
def test_a_file_that_is_not_there_as_it_was_saved_is_damage(
    saved: Checkpoint, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    refuse_to_open(monkeypatch, code)
    with pytest.raises(CheckpointCorrupt):
        read_plain(saved.path / "weights", 10)


def test_a_folder_that_cannot_be_looked_into_is_not_called_gone(
    saved: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(StorageError, match="Permission denied"):
        read_manifest(saved.path)


def test_weights_that_cannot_be_read_now_are_passed_over_only_if_that_is_said(
    saved: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "digest", refuse)
    with pytest.raises(StorageError, match="weights: Input/output error"):
        verify(saved)
    with pytest.raises(StorageError):
        first_whole([saved])
    found, faults = first_whole([saved], passed_over=(CheckpointCorrupt, StorageError))
    assert (found, [type(fault) for fault in faults]) == (None, [StorageError])


def test_sizes_that_cannot_be_read_do_not_look_whole(saved: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "is_file", refuse)
    assert not looks_whole(saved)


def test_an_error_without_words_is_told_by_its_kind() -> None:
    assert unreadable(OSError(), "it cannot be read").message == "it cannot be read: OSError"


def test_what_is_set_aside_is_gone_at_once_and_its_files_go_later(store: CheckpointStore, saved: Checkpoint) -> None:
    store.set_aside(saved.manifest.name)
    assert list(store) == []
    (left,) = store.root.iterdir()
    assert (left / "weights").exists()
    store.sweep_retired()
    assert not left.exists()
