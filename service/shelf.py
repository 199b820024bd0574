"""Checkpoints as the ledger lists them and the disk holds them: found, adopted, looked at, pinned, removed."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import DataError, IntegrityError
from sqlmodel import Session

from core.checkpointing import CheckpointStore, check_sizes
from core.checkpoints.manifest import PINNED, Manifest, read_manifest
from core.checkpoints.manifest import Checkpoint as Saved
from core.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound, StorageError
from jobs import catalog, shelf
from jobs.database import Database
from jobs.errors import CheckpointRemoved
from jobs.removal import discard
from jobs.tables import FINAL, Checkpoint, Job

log = logging.getLogger(__name__)

LATEST = "latest"
"""Stands for the newest one."""

BEST = ":best"
"""After a job's id: its checkpoint with the lowest validation loss."""

LOOK_BACK = 50
"""Checkpoints that are looked at for one that is whole."""

_UNFIT = (DataError, IntegrityError, ArithmeticError, ValueError)
"""What a database, or its driver, says of a value that it cannot keep, such as a number beyond 64 bits."""

_LEGACY = re.compile(r"checkpoint_[\w.-]{1,200}\.pt", re.ASCII)


class Shelf:
    """All checkpoints under one root.

    Args:
        ledger: Knows those that jobs made.
        root: Where they all are.
        convert: Makes a checkpoint of the legacy file of that name below the root.
    """

    def __init__(self, ledger: Database, root: Path, convert: Callable[[str], None]) -> None:
        self._ledger = ledger
        self._root = root
        self._convert = convert

    def find(self, owner: str, ref: str) -> Checkpoint:
        """The checkpoint of that id or name; `.pt` may follow a name.

        `latest` is the newest that looks whole, and `<job>:best` the one of a job with the lowest validation
        loss. A legacy `.pt` file of that name becomes a checkpoint of our own when it is first asked for.

        Raises:
            CheckpointNotFound: neither the ledger nor the disk has it.
            CheckpointRemoved: they had it.
            JobNotFound: there is no job of which it is to be the best.
            WorkerUnavailable, GenerationRefused: a legacy file cannot be read now, or at all.
        """
        ref = ref.removesuffix(".pt")
        if ref == LATEST:
            return self.first_whole(self.newest(owner))
        if ref.endswith(BEST):
            return self.first_whole(self.best_first(owner, ref))
        try:
            return self._known(owner, ref)
        except CheckpointRemoved:
            raise
        except CheckpointNotFound:
            self._convert_legacy(ref)
            self.adopt_strays(owner)
            return self._known(owner, ref)

    def newest(self, owner: str) -> list[Checkpoint]:
        """The newest ones, as far back as anybody looks for one that is whole; there is at least one.

        Raises:
            CheckpointNotFound: there is none.
        """
        self.adopt_strays(owner)
        with self._ledger.read() as session:
            rows, _ = catalog.list_checkpoints(session, owner, LOOK_BACK)
        if not rows:
            raise CheckpointNotFound("There is no checkpoint yet; POST /jobs starts a run that makes some.")
        return rows

    def best_first(self, owner: str, ref: str) -> list[Checkpoint]:
        """Those of the job in `<job>:best`, the lowest validation loss first; there is at least one.

        Raises:
            JobNotFound: there is no such job.
            CheckpointNotFound: no checkpoint of it has a validation loss.
        """
        job_id = ref.removesuffix(BEST)
        self.adopt_strays(owner)
        with self._ledger.read() as session:
            job = catalog.get_job(session, owner, job_id)
            rows, _ = catalog.list_checkpoints(session, owner, LOOK_BACK, job_id=job.id, order="best")
        measured = [row for row in rows if row.val_loss is not None]
        if not measured:
            raise CheckpointNotFound(f"Job {job_id} has no checkpoint with a validation loss.")
        return measured

    def first_whole(self, rows: Sequence[Checkpoint]) -> Checkpoint:
        """The first that looks whole; if none does, the first, whose own answer says what is wrong."""
        return next((row for row in rows if self.looks_whole(row)), rows[0])

    def manifest(self, row: Checkpoint) -> Manifest:
        """What the checkpoint's folder says.

        Raises:
            CheckpointCorrupt: it says nothing that can be understood, or it is gone.
        """
        return self._saved(row).manifest

    def sound_manifest(self, row: Checkpoint) -> Manifest:
        """The same, of a checkpoint that a run is to go on from: its files have the right sizes, at least.

        Raises:
            CheckpointCorrupt: names the file, and the newest one before it of its run that looks whole.
        """
        flaw = self.flaw_of(row)
        if flaw is not None:
            raise CheckpointCorrupt(f"{flaw}; {self._advice(row)}")
        return self.manifest(row)

    def looks_whole(self, row: Checkpoint) -> bool:
        """Whether all its files are there, in the right sizes; they are not read."""
        return self.flaw_of(row) is None

    def flaw_of(self, row: Checkpoint) -> str | None:
        """What can be seen to be wrong with it in no time, if anything."""
        try:
            check_sizes(self._saved(row))
        except (CheckpointCorrupt, StorageError) as error:
            return error.message
        return None

    def set_pinned(self, owner: str, ref: str, pinned: bool) -> Checkpoint:
        """Let a checkpoint stay whatever comes after it, or no longer; the folder says so too, for those who have no
        ledger.

        Raises:
            CheckpointNotFound, CheckpointRemoved: there is none of that id or name.
            StorageError: the folder cannot be written; it is pinned here, and asking again does the rest.
        """
        row = self._exactly(owner, ref)
        with self._ledger.write() as session:
            row = shelf.set_pinned(session, row, pinned)
        marker = self._root / row.path / PINNED
        try:
            with suppress(FileNotFoundError):
                marker.touch() if pinned else marker.unlink()
        except OSError as error:
            raise StorageError(f"checkpoint '{row.name}' cannot be marked on the disk: {error.strerror}") from error
        return row

    def remove(self, owner: str, ref: str) -> None:
        """Remove a checkpoint.

        Raises:
            CheckpointNotFound, CheckpointRemoved: there is none of that id or name.
            CheckpointPinned, CheckpointNeeded: it has to stay.
        """
        row = self._exactly(owner, ref)
        with self._ledger.write() as session:
            shelf.remove(session, row, self.looks_whole)
        self._discard([row.name])

    def remove_those_of(self, job: Job) -> None:
        """Remove the checkpoints of a job that has ended, but those that have to stay."""
        with self._ledger.write() as session:
            names = shelf.remove_those_of(session, job)
        self._discard(names)

    def adopt_strays(self, owner: str) -> None:
        """Enter into the ledger what only the disk knows, such as a console run's.

        What a job made that has not ended is left to that job: its worker is about to say so itself.
        """
        on_disk = self._names_on_disk()
        with self._ledger.read() as session:
            strays = on_disk - shelf.known_names(session, on_disk)
        found = [saved for name in sorted(strays) if (saved := self._readable(name))]
        if not found:
            return
        with self._ledger.write() as session:
            for saved in found:
                _adopt_if_fit(session, owner, saved)

    def _convert_legacy(self, ref: str) -> None:
        """If there is a legacy file of that name."""
        name = f"{ref}.pt"
        if not _LEGACY.fullmatch(name):
            return
        try:
            status = (self._root / name).lstat()
        except OSError:
            return
        if stat.S_ISREG(status.st_mode):
            self._convert(name)

    def _known(self, owner: str, ref: str) -> Checkpoint:
        with self._ledger.read() as session:
            return catalog.find_checkpoint(session, owner, ref)

    def _names_on_disk(self) -> set[str]:
        try:
            entries = list(os.scandir(self._root))
        except FileNotFoundError:
            return set()
        return {entry.name for entry in entries if _is_a_name(entry.name) and entry.is_dir(follow_symlinks=False)}

    def _readable(self, name: str) -> Saved | None:
        try:
            saved = read_manifest(self._root / name)
        except (CheckpointError, StorageError) as error:
            log.debug("not adopted: %s", error.message)
            return None
        return saved if saved.manifest.name == name else None

    def _saved(self, row: Checkpoint) -> Saved:
        try:
            return read_manifest(self._root / row.name)
        except CheckpointNotFound:
            raise CheckpointCorrupt(f"the folder of checkpoint '{row.name}' is gone from the disk") from None

    def _advice(self, row: Checkpoint) -> str:
        with self._ledger.read() as session:
            earlier = catalog.earlier_of_run(session, row)
        before = next((item for item in earlier if self.looks_whole(item)), None)
        if before is None:
            return "no earlier one of its run is left to go on from"
        return f"the newest before it that looks whole is {before.id} (step {before.step})"

    def _exactly(self, owner: str, ref: str) -> Checkpoint:
        """For what cannot be undone, or should not meet another one tomorrow: neither `latest` nor a beginning."""
        row = self.find(owner, ref)
        if ref.removesuffix(".pt") not in (row.id, row.name):
            raise CheckpointNotFound(f"{ref!r} is not a whole id or name; {row.id} is one that it could stand for.")
        return row

    def _discard(self, names: Iterable[str]) -> None:
        """They are gone already, as everyone is told; a folder that cannot be removed now is left to a worker."""
        store = CheckpointStore(self._root)
        discard(self._ledger, store, names)
        store.sweep_retired()


def _is_a_name(name: str) -> bool:
    """Whether a checkpoint can be called so. The ledger cannot even be asked for a name that is not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name.startswith("checkpoint_")


def _adopt_if_fit(session: Session, owner: str, saved: Saved) -> None:
    """One that the ledger cannot keep is left out, so that the others come in."""
    try:
        with session.begin_nested():
            _adopt(session, owner, saved)
    except _UNFIT as error:
        log.warning("checkpoint %s is not listed: the ledger cannot keep what it says (%s)", saved.path.name, error)


def _adopt(session: Session, owner: str, saved: Saved) -> None:
    """Enter a stray, unless a job that is not at its end made it: that one's worker is about to say so itself."""
    manifest = saved.manifest
    job = session.get(Job, manifest.job_id) if manifest.job_id is not None else None
    if job is None or (job.state in FINAL and job.owner == owner):
        catalog.adopt_checkpoint(session, _row_of(saved, owner, job))


def _row_of(saved: Saved, owner: str, job: Job | None) -> Checkpoint:
    """Model and source are named as a job's settings name them."""
    manifest = saved.manifest
    same = {"id", "name", "step", "attempt", "parent", "train_loss", "val_loss", "created_at"}
    told = manifest.model_dump(include=same)
    return Checkpoint(
        **told,
        owner=owner,
        job_id=job.id if job else None,
        run=manifest.run or manifest.job_id,
        pinned=saved.pinned,
        path=manifest.name,
        model=str(manifest.config.get("model_type", manifest.model)),
        source=str(manifest.config.get("source", manifest.source)),
        size_bytes=manifest.size_bytes,
    )
