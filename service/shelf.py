"""Checkpoints as the ledger lists them and the disk holds them."""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from sqlmodel import Session

from core.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound
from core.manifest import Manifest, read_manifest
from jobs import catalog
from jobs.database import Database
from jobs.tables import FINAL, Checkpoint, Job

log = logging.getLogger(__name__)

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
        """The checkpoint of that id or name, or the newest for `latest`; `.pt` after a name is tolerated.

        A legacy `.pt` file of that name becomes a checkpoint of our own when it is first asked for.

        Raises:
            CheckpointNotFound: neither the ledger nor the disk has it.
            WorkerUnavailable, GenerationRefused: a legacy file cannot be read now, or at all.
        """
        ref = ref.removesuffix(".pt")
        if ref == "latest":
            self.adopt_strays(owner)
            return self._newest(owner)
        try:
            return self._known(owner, ref)
        except CheckpointNotFound:
            converted = self._convert_legacy(ref)
            if not self.adopt_strays(owner) and not converted:
                raise
            return self._known(owner, ref)

    def manifest(self, row: Checkpoint) -> Manifest:
        """What the checkpoint's folder says.

        Raises:
            CheckpointCorrupt: it says nothing that can be understood, or it is gone.
        """
        try:
            return read_manifest(self._root / row.name).manifest
        except CheckpointNotFound:
            raise CheckpointCorrupt(f"the folder of checkpoint '{row.name}' is gone from the disk") from None

    def adopt_strays(self, owner: str) -> bool:
        """Enter into the ledger what only the disk knows, such as a console run's; whether there was anything.

        What a job made that has not ended is left to that job: its worker is about to say so itself.
        """
        on_disk = self._names_on_disk()
        with self._ledger.read() as session:
            strays = on_disk - catalog.checkpoint_names(session)
        manifests = [manifest for name in sorted(strays) if (manifest := self._readable(name))]
        if not manifests:
            return False
        with self._ledger.write() as session:
            adopted = [manifest.name for manifest in manifests if _adopt(session, owner, manifest)]
        return bool(adopted)

    def _convert_legacy(self, ref: str) -> bool:
        """Whether there is a legacy file of that name, which is then converted."""
        name = f"{ref}.pt"
        if not _LEGACY.fullmatch(name):
            return False
        try:
            status = (self._root / name).lstat()
        except OSError:
            return False
        if not stat.S_ISREG(status.st_mode):
            return False
        self._convert(name)
        return True

    def _known(self, owner: str, ref: str) -> Checkpoint:
        with self._ledger.read() as session:
            return catalog.find_checkpoint(session, owner, ref)

    def _newest(self, owner: str) -> Checkpoint:
        with self._ledger.read() as session:
            rows, _ = catalog.list_checkpoints(session, owner, 1)
        if not rows:
            raise CheckpointNotFound("There is no checkpoint yet; POST /jobs starts a run that makes some.")
        return rows[0]

    def _names_on_disk(self) -> set[str]:
        try:
            entries = list(os.scandir(self._root))
        except FileNotFoundError:
            return set()
        return {
            entry.name
            for entry in entries
            if entry.name.startswith("checkpoint_") and entry.is_dir(follow_symlinks=False)
        }

    def _readable(self, name: str) -> Manifest | None:
        try:
            manifest = read_manifest(self._root / name).manifest
        except CheckpointError as error:
            log.debug("not adopted: %s", error.message)
            return None
        return manifest if manifest.name == name else None


def _adopt(session: Session, owner: str, manifest: Manifest) -> bool:
    """Enter a stray, unless a job that is not at its end made it: that one's worker is about to say so itself."""
    job = session.get(Job, manifest.job_id) if manifest.job_id is not None else None
    if job is not None and (job.state not in FINAL or job.owner != owner):
        return False
    return catalog.adopt_checkpoint(session, _row_of(manifest, owner, job))


def _row_of(manifest: Manifest, owner: str, job: Job | None) -> Checkpoint:
    """Model and source are named as a job's settings name them."""
    same = {"id", "name", "step", "attempt", "parent", "train_loss", "val_loss", "created_at"}
    told = manifest.model_dump(include=same)
    return Checkpoint(
        **told,
        owner=owner,
        job_id=job.id if job else None,
        path=manifest.name,
        model=str(manifest.config.get("model_type", manifest.model)),
        source=str(manifest.config.get("source", manifest.source)),
        size_bytes=manifest.size_bytes,
    )
