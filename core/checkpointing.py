"""The checkpoint store: stage → publish → verify → list, in folders that are either whole or not there.

A checkpoint is a folder `checkpoint_<model>_<source>_step000100_<id>/` of safetensors and JSON. It is written under a
name that no reader looks at, every file synced, the manifest with each file's size and SHA-256 last; then the folder
is renamed, which is the moment it exists. Light: tensors are read and written by `core.state`, imported when needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from core.errors import CheckpointCorrupt, CheckpointNotFound

if TYPE_CHECKING:
    from core.state import CheckpointContent

MANIFEST = "manifest.json"
FORMAT = 1
STAGING_PREFIX = "tmp-"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint says of itself; `files` proves the rest."""

    id: str
    name: str
    step: int
    end_step: int
    model: str
    source: str
    created_at: float
    config: dict[str, Any]
    train_loss: float | None = None
    val_loss: float | None = None
    job_id: str | None = None
    attempt: int = 0
    fence: int = 0
    parent: str | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def size_bytes(self) -> int:
        """Size of all files the manifest lists."""
        return sum(int(entry["size"]) for entry in self.files.values())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint: its folder and its manifest."""

    path: Path
    manifest: Manifest


class CheckpointStore:
    """The checkpoints under one root.

    Args:
        root: The folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(self, manifest: Manifest, write: Callable[[Path], None]) -> Checkpoint:
        """Make a checkpoint exist, whole or not at all.

        Args:
            manifest: Everything but `files`, which is read off what `write` wrote.
            write: Puts the files into the folder it is given.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        staged = self.root / f"{STAGING_PREFIX}{manifest.name}"
        staged.mkdir()
        try:
            write(staged)
            files = {path.name: _seal(path) for path in sorted(staged.iterdir())}
            complete = _with_files(manifest, files)
            (staged / MANIFEST).write_text(json.dumps(asdict(complete), indent=1))
            _seal(staged / MANIFEST)
            _sync_folder(staged)
            final = self.root / manifest.name
            staged.rename(final)
            _sync_folder(self.root)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return Checkpoint(final, complete)

    def __iter__(self) -> Iterator[Checkpoint]:
        """Every published checkpoint, newest first, by what its manifest says; the files are not read."""
        found = []
        for folder in self.root.glob("checkpoint_*") if self.root.is_dir() else []:
            try:
                found.append(read_manifest(folder))
            except CheckpointCorrupt:
                continue
        return iter(sorted(found, key=lambda item: (item.manifest.created_at, item.manifest.step), reverse=True))

    def find(self, ref: str) -> Checkpoint:
        """The checkpoint of that id or name, unverified.

        Raises:
            CheckpointNotFound: none of that id or name under this root.
        """
        for checkpoint in self:
            if ref in (checkpoint.manifest.id, checkpoint.manifest.name):
                return checkpoint
        raise CheckpointNotFound(f"no checkpoint '{ref}'; GET /checkpoints lists those there are")

    def newest_of(self, job_id: str) -> Checkpoint | None:
        """The newest checkpoint of a job whose files are all as its manifest says; broken ones are passed over."""
        mine = [item for item in self if item.manifest.job_id == job_id]
        for checkpoint in sorted(mine, key=lambda item: item.manifest.step, reverse=True):
            try:
                verify(checkpoint)
            except CheckpointCorrupt:
                continue
            return checkpoint
        return None


def new_manifest(
    *, model: str, source: str, step: int, end_step: int, config: Mapping[str, Any], **more: Any
) -> Manifest:
    """A manifest with a fresh id and the name that belongs to it; `source` is a path or name."""
    from core.io_utils import get_data_source_name

    identity = secrets.token_hex(5)
    name = f"checkpoint_{model}_{get_data_source_name(source)}_step{step:06d}_{identity}"
    return Manifest(
        id=identity,
        name=name,
        step=step,
        end_step=end_step,
        model=model,
        source=source,
        created_at=time.time(),
        config=dict(config),
        **more,
    )


def read_manifest(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, its manifest parsed, its files not yet read.

    Raises:
        CheckpointNotFound: there is no such folder.
        CheckpointCorrupt: there is no manifest, or it cannot be understood.
    """
    if not folder.is_dir():
        raise CheckpointNotFound(f"no checkpoint at '{folder}'")
    try:
        said = json.loads((folder / MANIFEST).read_text())
        if said["format"] > FORMAT:
            raise CheckpointCorrupt(
                f"checkpoint '{folder.name}' was written by a newer Ratchet (format {said['format']})"
            )
        known = {entry.name for entry in fields(Manifest)}
        return Checkpoint(folder, Manifest(**{name: value for name, value in said.items() if name in known}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"checkpoint '{folder.name}' has no readable manifest: {error}") from None


def verify(checkpoint: Checkpoint) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointCorrupt: names the first file that is missing, of another size, or altered.
    """
    for name, expected in checkpoint.manifest.files.items():
        path = checkpoint.path / name
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise CheckpointCorrupt(f"checkpoint '{checkpoint.manifest.name}' lacks its file {name}")
        if path.stat().st_size != expected["size"] or _digest(path) != expected["sha256"]:
            raise CheckpointCorrupt(f"checkpoint '{checkpoint.manifest.name}' is damaged: {name} is not what was saved")


def save_checkpoint(store: CheckpointStore, manifest: Manifest, write: Callable[[Path], None]) -> Checkpoint:
    """Publish a checkpoint; `write` is `core.state.Snapshot.write`."""
    return store.publish(manifest, write)


def load_checkpoint(path: str | Path, device: str = "cpu") -> CheckpointContent:
    """The verified content of a checkpoint folder, or of a legacy `.pt` file.

    Args:
        path: A folder, a `.pt` file, or the path of a folder with `.pt` added to its name.
        device: Where tensors are put.

    Raises:
        CheckpointNotFound, CheckpointCorrupt, CheckpointUnsafe: said in one sentence.
    """
    from core.legacy import load
    from core.state import read

    given = Path(path)
    if given.is_file():
        return load(given, device)
    folder = given.with_suffix("") if given.suffix == ".pt" and not given.exists() else given
    checkpoint = read_manifest(folder)
    verify(checkpoint)
    return read(checkpoint, device)


def create_checkpoint_log_file(
    log_dir: str | Path, model_name: str, source_name: str, is_resume: bool, resume_step: int = 0
) -> tuple[IO[str], Path]:
    """Open a new log of this run's checkpoints, one line each, and say in its first line what run it is."""
    folder = Path(log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    kind = f"resume{resume_step:06d}" if is_resume else "fresh"
    stamp = time.strftime("%Y%m%d_%H%M%S")
    path = folder / f"checkpoints_{model_name}_{source_name}_{kind}_{stamp}_{secrets.token_hex(2)}.log"
    log_file = path.open("x", encoding="utf-8", buffering=1)
    begun = f"resumed at step {resume_step}" if is_resume else "fresh run"
    log_file.write(f"# {model_name} on {source_name}, {begun}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
    return log_file, path


def write_checkpoint_log(
    log_file: IO[str], step: int, train_loss: float | None, val_loss: float | None, name: str = ""
) -> None:
    """Add one line: step, losses, checkpoint name."""
    log_file.write(f"step {step:6d}  train {_number(train_loss)}  val {_number(val_loss)}  {name}\n")


def close_checkpoint_log(log_file: IO[str], log_path: Path) -> Path:
    """Close the log and return where it is."""
    log_file.close()
    return log_path


def _number(value: float | None) -> str:
    return "   —  " if value is None else f"{value:.4f}"


def _with_files(manifest: Manifest, files: dict[str, dict[str, Any]]) -> Manifest:
    return Manifest(**{**asdict(manifest), "files": files})


def _seal(path: Path) -> dict[str, Any]:
    """Sync a written file to disk and say what it is."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
