from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import (
    CheckpointStore,
    close_checkpoint_log,
    create_checkpoint_log_file,
    first_whole,
    load_checkpoint,
    looks_whole,
    verify,
    write_checkpoint_log,
)
from core.checkpoints.manifest import MANIFEST, Manifest, hash_of_config, new_manifest, read_manifest
from core.errors import CheckpointCorrupt, CheckpointNotFound, DiskFull, StorageError


def manifest(step: int = 100, **given: Any) -> Manifest:
    return new_manifest(model="gpt2", source="sources/my tale.md", step=step, end_step=200, config={}, **given)


def write_two_files(folder: Path) -> None:
    (folder / "state.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights" * 100)


def test_a_name_says_model_source_and_step() -> None:
    made = manifest()
    assert made.name == f"checkpoint_gpt2_my_tale_step000100_{made.id}"


def test_two_runs_with_equal_names_get_different_ids(store: CheckpointStore) -> None:
    first, second = (store.publish(manifest(), write_two_files) for _ in range(2))
    assert first.path != second.path


def test_a_published_checkpoint_is_whole_and_verifies(store: CheckpointStore) -> None:
    made = store.publish(manifest(), write_two_files)
    verify(read_manifest(made.path))
    assert set(made.manifest.files) == {"state.json", "model.safetensors"}
    assert made.manifest.size_bytes == 702


def test_a_save_that_fails_leaves_nothing_that_a_reader_would_see(store: CheckpointStore) -> None:
    def fail(folder: Path) -> None:
        write_two_files(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFull, match="No space left"):
        store.publish(manifest(), fail)
    assert list(store) == []
    assert list(store.root.iterdir()) == []


SITES = ["staged", "file", "manifest", "renaming", "renamed", "published"]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ENOSPC", DiskFull),
        ("EDQUOT", DiskFull),
        ("EFBIG", DiskFull),
        ("EIO", StorageError),
        ("EROFS", StorageError),
        ("EACCES", OSError),
    ],
)
def test_whenever_the_disk_refuses_a_save_is_whole_or_not_there_and_the_reason_is_told(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, site: str, code: str, kind: type[Exception]
) -> None:
    before = store.publish(manifest(), write_two_files)
    monkeypatch.setenv("RATCHET_FAILPOINT", f"checkpoint.{site}:error={code}")
    with pytest.raises(kind) as raised:
        store.publish(manifest(200), write_two_files)
    assert type(raised.value) is kind or kind is OSError
    for item in store:
        verify(item)
    assert before in list(store)
    assert [path.name for path in store.root.iterdir() if path.name.startswith("tmp-")] == []


def test_a_file_larger_than_its_limit_is_told_like_a_full_disk(
    run: Any, config: Any, store: CheckpointStore, request: pytest.FixtureRequest
) -> None:
    told = run(config(), store=store)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    with pytest.raises(DiskFull, match="File too large; make room"):
        told.trainer.train()
    assert list(store.root.iterdir()) == []


def test_a_full_device_that_the_tensors_meet_is_told_apart_by_its_number(store: CheckpointStore) -> None:
    def full(_: Path) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFull):
        store.publish(manifest(), full)


def test_whoever_saves_or_verifies_can_do_something_else_between_two_chunks(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.machine.disk.CHUNK_BYTES", 100)
    turns: list[str] = []
    checkpoint = store.publish(manifest(), write_two_files, lambda: turns.append("save"))
    first_whole([checkpoint], lambda: turns.append("verify"))
    least = checkpoint.manifest.size_bytes // 100
    assert (turns.count("save") >= least, turns.count("verify") >= least) == (True, True)
    entry = checkpoint.manifest.files["model.safetensors"]
    assert entry.sha256 == hashlib.sha256(b"weights" * 100).hexdigest()


def test_a_folder_that_was_never_published_is_not_listed(store: CheckpointStore) -> None:
    made = store.publish(manifest(), write_two_files)
    made.path.rename(store.root / f"tmp-{made.path.name}")
    assert list(store) == []


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit flipped": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "gone": lambda path: path.unlink(),
    "a link": lambda path: path.rename(path.parent.parent / "elsewhere") and path.symlink_to("../elsewhere"),
}


@pytest.mark.parametrize("name", ["state.json", "model.safetensors"])
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_file_is_found_and_named(store: CheckpointStore, name: str, damage: str) -> None:
    made = store.publish(manifest(), write_two_files)
    DAMAGE[damage](made.path / name)
    with pytest.raises(CheckpointCorrupt, match=name):
        verify(made)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b"])
def test_a_manifest_that_names_files_elsewhere_is_refused(store: CheckpointStore, name: str) -> None:
    made = store.publish(manifest(), write_two_files)
    said = json.loads((made.path / MANIFEST).read_text())
    said["files"][name] = {"size": 1, "sha256": ""}
    (made.path / MANIFEST).write_text(json.dumps(said))
    with pytest.raises(CheckpointCorrupt):
        verify(read_manifest(made.path))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": "x"}'])
def test_a_manifest_that_makes_no_sense_is_one_sentence(store: CheckpointStore, text: str) -> None:
    made = store.publish(manifest(), write_two_files)
    (made.path / MANIFEST).write_text(text)
    with pytest.raises(CheckpointCorrupt, match="no readable manifest"):
        read_manifest(made.path)
    assert list(store) == []


def test_a_checkpoint_of_a_newer_release_is_not_guessed_at(store: CheckpointStore) -> None:
    made = store.publish(manifest(), write_two_files)
    said = json.loads((made.path / MANIFEST).read_text())
    (made.path / MANIFEST).write_text(json.dumps({**said, "format": 99}))
    with pytest.raises(CheckpointCorrupt, match="newer Ratchet"):
        read_manifest(made.path)


def test_a_checkpoint_is_found_by_id_and_by_name(store: CheckpointStore) -> None:
    made = store.publish(manifest(), write_two_files)
    assert store.find(made.manifest.id).path == store.find(made.manifest.name).path == made.path
    with pytest.raises(CheckpointNotFound):
        store.find("nobody")


def test_a_job_goes_on_from_the_newest_that_verifies_and_is_told_what_was_passed_over(store: CheckpointStore) -> None:
    old, new = (store.publish(manifest(step, job_id="job_a"), write_two_files) for step in (100, 200))
    store.publish(manifest(300, job_id="job_b"), write_two_files)
    assert [item.path for item in store.of_job("job_a")] == [new.path, old.path]
    assert first_whole(store.of_job("job_a")) == (new, [])
    flip(new.path / "state.json")
    whole, broken = first_whole(store.of_job("job_a"))
    assert whole == old
    assert [new.path.name in error.message for error in broken] == [True]
    flip(old.path / "state.json")
    assert first_whole(store.of_job("job_a"))[0] is None


@pytest.mark.parametrize(
    "said",
    [
        {"created_at": "yesterday"},
        {"created_at": 1e300},
        {"config": []},
        {"step": -1},
        {"step": 10**30},
        {"files": {"a": 1}},
        {"name": None},
    ],
)
def test_a_manifest_with_values_of_another_kind_is_not_there(store: CheckpointStore, said: dict[str, Any]) -> None:
    made, other = (store.publish(manifest(), write_two_files) for _ in range(2))
    path = made.path / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **said}))
    assert [item.path for item in store] == [other.path]


def test_a_file_that_is_named_like_a_checkpoint_hides_no_other(store: CheckpointStore) -> None:
    made = store.publish(manifest(), write_two_files)
    (store.root / "checkpoint_gpt2_x_step000100_abc.pt").write_bytes(b"older scripts left this here")
    assert [item.path for item in store] == [made.path]


def test_a_loss_that_is_no_number_is_written_as_none(store: CheckpointStore) -> None:
    made = store.publish(manifest(val_loss=float("nan")), write_two_files)
    assert "NaN" not in (made.path / MANIFEST).read_text()
    assert read_manifest(made.path).manifest.val_loss is None


def test_what_a_killed_save_left_is_swept_by_the_job_that_left_it(store: CheckpointStore) -> None:
    left = {owner: store.root / f"tmp-{owner}-abc" for owner in ("job_a", "job_b", "script")}
    for folder in left.values():
        folder.mkdir(parents=True)
    store.sweep("job_a")
    assert [folder.exists() for folder in left.values()] == [False, True, True]


def test_not_one_bit_of_a_manifest_changes_unnoticed(store: CheckpointStore) -> None:
    """A flip that leaves the same JSON, in white space, changes nothing that anyone reads."""
    saved = store.publish(manifest(hashes={"source": "0" * 64}, val_loss=1.5), write_two_files)
    path = saved.path / MANIFEST
    honest = path.read_bytes()
    for position in range(len(honest)):
        for bit in range(8):
            flipped = bytearray(honest)
            flipped[position] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = read_manifest(saved.path)
            except CheckpointCorrupt:
                continue
            assert found.manifest == saved.manifest, f"bit {bit} of byte {position}: {flipped[position]:#x}"


def test_a_manifest_of_the_first_format_is_read_unless_its_settings_changed(store: CheckpointStore) -> None:
    saved = store.publish(manifest(hashes={"source": "0" * 64}, val_loss=1.5), write_two_files)
    config = {"learning_rate": 0.001}
    said = {**saved.manifest.model_dump(mode="json"), "format": 1, "config": config}
    said["hashes"] = {"config": hash_of_config(config)}
    (saved.path / MANIFEST).write_text(json.dumps(said))
    assert read_manifest(saved.path).manifest.config == config
    (saved.path / MANIFEST).write_text(json.dumps({**said, "config": {"learning_rate": 0.101}}))
    with pytest.raises(CheckpointCorrupt, match="is not what was saved"):
        read_manifest(saved.path)


def test_a_copy_under_another_name_counts_for_nothing(store: CheckpointStore) -> None:
    saved = store.publish(manifest(hashes={"source": "0" * 64}, val_loss=1.5), write_two_files)
    shutil.copytree(saved.path, store.root / f"{saved.path.name}_copy")
    assert [item.path for item in store] == [saved.path]


def test_what_nobody_has_written_to_for_a_day_is_swept_and_a_save_under_way_is_not(store: CheckpointStore) -> None:
    abandoned, under_way, anothers = (
        store.root / name for name in ("tmp-run_a-0123456789", "tmp-run_b-0123456789", "tmp-mythesis")
    )
    for folder in (abandoned, under_way, anothers):
        folder.mkdir(parents=True)
        (folder / "model.safetensors").touch()
        os.utime(folder, (0, 0))
    for folder in (abandoned, anothers):
        os.utime(folder / "model.safetensors", (0, 0))
    store.sweep_abandoned()
    assert set(store.root.iterdir()) == {under_way, anothers}


def test_a_damaged_checkpoint_is_never_loaded(run: Any, config: Any, store: CheckpointStore) -> None:
    run(config(), store=store).trainer.train()
    newest = next(iter(store))
    flip(newest.path / "model.safetensors")
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors"):
        load_checkpoint(newest.path)


def test_nothing_that_is_written_is_a_pickle(run: Any, config: Any, store: CheckpointStore) -> None:
    run(config(), store=store).trainer.train()
    files = {path.suffix for item in store for path in item.path.iterdir()}
    assert files == {".json", ".safetensors"}


def test_a_path_ending_in_pt_means_the_folder_of_that_name(run: Any, config: Any, store: CheckpointStore) -> None:
    run(config(), store=store).trainer.train()
    newest = next(iter(store))
    assert load_checkpoint(f"{newest.path}.pt")["id"] == newest.manifest.id


def test_a_path_with_nothing_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no checkpoint at"):
        load_checkpoint(tmp_path / "nothing.pt")


def test_a_checkpoint_log_has_a_line_for_each_checkpoint(tmp_path: Path) -> None:
    log_file, path = create_checkpoint_log_file(tmp_path / "logs", "gpt2", "tale", is_resume=True, resume_step=100)
    write_checkpoint_log(log_file, 200, 1.5, None, "checkpoint_x")
    assert close_checkpoint_log(log_file, path) == path
    assert "resume000100" in path.name
    first, second = path.read_text().splitlines()
    assert "resumed at step 100" in first
    assert second.split() == ["step", "200", "train", "1.5000", "val", "—", "checkpoint_x"]


def test_what_has_the_right_sizes_looks_whole_though_it_may_be_altered(store: CheckpointStore) -> None:
    made = store.publish(manifest(), write_two_files)
    weights = made.path / "model.safetensors"
    assert looks_whole(made)
    weights.write_bytes(b"altered" * 100)
    assert looks_whole(made)
    weights.write_bytes(b"short")
    assert not looks_whole(made)
    weights.unlink()
    assert not looks_whole(made)
