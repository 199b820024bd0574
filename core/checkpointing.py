"""The checkpoint store: stage → publish → verify → list, in folders that are either whole or not there.

A checkpoint is a folder `checkpoint_<model>_<source>_step000100_<id>/` of safetensors and JSON. It is written under a
name that no reader looks at, every file synced, the manifest with each file's size and SHA-256 last; then the folder
is renamed, which is the moment it exists. Light: tensors are read and written by `core.state`, imported when needed.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from core.checkpoints.manifest import MANIFEST, Checkpoint, FileEntry, Manifest, read_manifest
from core.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound, RatchetError, StorageError
from core.machine import disk
from core.machine.disk import Meanwhile, nothing
from core.machine.failpoints import failpoint

if TYPE_CHECKING:
    from core.state import CheckpointContent

STAGING_PREFIX = "tmp-"
RETIRED_PREFIX = "tmp-gone-"
ABANDONED_SECONDS = 86_400.0
_OURS = re.compile(r"tmp-((run|job)_[0-9a-z]+|script)-[0-9a-f]{10}")


class CheckpointStore:
    """The checkpoints under one root.

    Args:
        root: The folder; made when first written to.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def publish(
        self, manifest: Manifest, write: Callable[[Path], None], meanwhile: Meanwhile = nothing, *, size_bytes: int = 0
    ) -> Checkpoint:
        """Make a checkpoint exist, whole or not at all.

        Args:
            manifest: Everything but `files`, which is read off what `write` wrote.
            write: Puts the files into the folder it is given.
            size_bytes: What they will take; where there is less room, nothing is begun.

        Raises:
            DiskFull, StorageError: the disk refused it, and nothing of it is left there; or it refused to sync the root
                at the very end, and it may be there, whole.
        """
        staged = self.root / f"{STAGING_PREFIX}{manifest.run or 'script'}-{manifest.id}"
        try:
            staged.mkdir(parents=True)
            disk.check_room(staged, size_bytes)
            failpoint("checkpoint.staged")
            write(staged)
            complete = _sealed(staged, manifest, meanwhile)
            final = self.root / manifest.name
            failpoint("checkpoint.renaming")
            staged.rename(final)
            failpoint("checkpoint.renamed")
            disk.sync_folder(self.root)
            failpoint("checkpoint.published")
        except BaseException as error:
            shutil.rmtree(staged, ignore_errors=True)
            refusal = disk.refusal_of(error, manifest.name)
            if refusal:
                raise refusal from error
            raise
        return Checkpoint(final, complete)

    def __iter__(self) -> Iterator[Checkpoint]:
        """Every published checkpoint, newest first, by what its manifest says; the files are not read.

        What makes no sense, or goes away while it is looked at, is not there.
        """
        found = []
        for folder in self.root.glob("checkpoint_*") if self.root.is_dir() else []:
            with contextlib.suppress(CheckpointError, StorageError):
                checkpoint = read_manifest(folder)
                # A copy under another name is its owner's; it counts for nothing here, least of all for retention.
                if checkpoint.manifest.name == folder.name:
                    found.append(checkpoint)
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

    def path_of(self, name: str) -> Path:
        """The folder, or legacy file, that a request names.

        Raises:
            CheckpointNotFound: there is none by this name right below the root.
        """
        path = self.root / name
        if Path(name).name != name or name.startswith(".") or path.is_symlink() or not path.exists():
            raise CheckpointNotFound(f"no checkpoint '{name}'")
        return path

    def of_job(self, job_id: str) -> list[Checkpoint]:
        """A job's checkpoints, unverified, the one with the most steps first."""
        mine = [item for item in self if item.manifest.job_id == job_id]
        return sorted(mine, key=lambda item: item.manifest.step, reverse=True)

    def of_run(self, run: str) -> list[Checkpoint]:
        """What one run has left, the newest first."""
        return [item for item in self if item.run == run]

    def sweep(self, job_id: str) -> None:
        """Remove what killed saves of a job left unpublished; to be called by the job's holder alone."""
        for left in self.root.glob(f"{STAGING_PREFIX}{job_id}-*"):
            shutil.rmtree(left, ignore_errors=True)

    def sweep_abandoned(self) -> None:
        """Remove what runs left unpublished that were killed and never begun again: nothing is written for a day."""
        for left in self.root.glob(f"{STAGING_PREFIX}*"):
            if not _OURS.fullmatch(left.name):
                continue
            with contextlib.suppress(OSError):
                if time.time() - max(path.stat().st_mtime for path in [left, *left.iterdir()]) > ABANDONED_SECONDS:
                    shutil.rmtree(left, ignore_errors=True)

    def retire(self, name: str) -> None:
        """Remove a checkpoint: from one moment to the next it is not there, and then its files go.

        It may be gone already; what a process that was killed on the way left behind goes with the next one.

        Raises:
            OSError: the disk refused it.
        """
        self.set_aside(name)
        self.sweep_retired()

    def set_aside(self, name: str) -> None:
        """The first half of `retire`, which takes no time; `sweep_retired` is the second.

        Raises:
            OSError: the disk refused it.
        """
        failpoint("checkpoint.retiring")
        with contextlib.suppress(FileNotFoundError):
            (self.root / name).rename(self.root / f"{RETIRED_PREFIX}{name}")
            disk.sync_folder(self.root)
        failpoint("checkpoint.retired")

    def sweep_retired(self) -> None:
        """Remove the files of retired checkpoints that a killed process left."""
        for left in self.root.glob(f"{RETIRED_PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)


def looks_whole(checkpoint: Checkpoint) -> bool:
    """Whether every file is there in its size; none is read, so an altered one may look whole."""
    try:
        check_sizes(checkpoint)
    except (CheckpointCorrupt, StorageError):
        return False
    return True


def check_sizes(checkpoint: Checkpoint) -> None:
    """Compare every file's size with the manifest, which takes no time.

    Raises:
        CheckpointCorrupt: names the first file that is missing or of another size.
        StorageError: the disk does not give one of them now.
    """
    for name in checkpoint.manifest.files:
        _check_size(checkpoint, name)


def verify(checkpoint: Checkpoint, meanwhile: Meanwhile = nothing) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointCorrupt: names the first file that is missing, of another size, or altered.
        StorageError: the disk does not give one of them now.
    """
    for name, expected in checkpoint.manifest.files.items():
        _check_size(checkpoint, name)
        with _readable(checkpoint, name):
            found = disk.digest(checkpoint.path / name, meanwhile)
        if found != expected.sha256:
            raise _damaged(checkpoint, name)


def first_whole(
    checkpoints: Iterable[Checkpoint],
    meanwhile: Meanwhile = nothing,
    passed_over: tuple[type[RatchetError], ...] = (CheckpointCorrupt,),
) -> tuple[Checkpoint | None, list[RatchetError]]:
    """The first that verifies, and what is wrong with each before it; those behind it are not read.

    Raises:
        StorageError: the disk does not give one of them now, unless such are to be `passed_over`, too.
    """
    broken = []
    for checkpoint in checkpoints:
        try:
            verify(checkpoint, meanwhile)
        except passed_over as error:
            broken.append(error)
        else:
            return checkpoint, broken
    return None, broken


def save_checkpoint(
    store: CheckpointStore,
    manifest: Manifest,
    write: Callable[[Path], None],
    meanwhile: Meanwhile = nothing,
    *,
    size_bytes: int = 0,
) -> Checkpoint:
    """Publish a checkpoint; `write` and `size_bytes` are `core.state.Snapshot`'s."""
    return store.publish(manifest, write, meanwhile, size_bytes=size_bytes)


def load_checkpoint(path: str | Path, device: str = "cpu", meanwhile: Meanwhile = nothing) -> CheckpointContent:
    """The verified content of a checkpoint folder, or of a legacy `.pt` file.

    Args:
        path: A folder, a `.pt` file, or the path of a folder with `.pt` added to its name.
        device: Where tensors are put.

    Raises:
        CheckpointNotFound, CheckpointCorrupt, CheckpointUnsafe: said in one sentence.
    """
    from core.checkpoints.legacy import load
    from core.state import read

    given = Path(path)
    if given.is_file():
        return load(given, device)
    folder = given.with_suffix("") if given.suffix == ".pt" and not given.exists() else given
    checkpoint = read_manifest(folder)
    verify(checkpoint, meanwhile)
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


def _check_size(checkpoint: Checkpoint, name: str) -> None:
    path = checkpoint.path / name
    with _readable(checkpoint, name):
        if Path(name).name != name or not path.is_file() or path.is_symlink():
            raise CheckpointCorrupt(f"checkpoint '{checkpoint.manifest.name}' lacks its file {name}")
        size = path.stat().st_size
    if size != checkpoint.manifest.files[name].size:
        raise _damaged(checkpoint, name)


@contextlib.contextmanager
def _readable(checkpoint: Checkpoint, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk.unreadable(error, f"checkpoint '{checkpoint.manifest.name}' cannot be read: {name}") from None


def _damaged(checkpoint: Checkpoint, name: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"checkpoint '{checkpoint.manifest.name}' is damaged: {name} is not what was saved")


def _number(value: float | None) -> str:
    return "   —  " if value is None else f"{value:.4f}"


def _sealed(staged: Path, manifest: Manifest, meanwhile: Meanwhile) -> Manifest:
    """The manifest with all files of the folder in it; every one of them, and itself last, is on the disk then."""
    files = {}
    for path in sorted(staged.iterdir()):
        files[path.name] = _seal(path, meanwhile)
        failpoint("checkpoint.file")
    complete = manifest.model_copy(update={"files": files})
    (staged / MANIFEST).write_text(complete.to_json())
    _seal(staged / MANIFEST, meanwhile)
    failpoint("checkpoint.manifest")
    disk.sync_folder(staged)
    return complete


def _seal(path: Path, meanwhile: Meanwhile) -> FileEntry:
    """Sync a written file to disk and say what it is."""
    disk.sync_file(path)
    return FileEntry(size=path.stat().st_size, sha256=disk.digest(path, meanwhile))
