"""Checkpoints as the ledger lists them and the disk holds them."""

from __future__ import annotations

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlmodel import Session

from core.checkpointing import Manifest, read_manifest
from core.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound
from jobs import catalog
from jobs.database import Database
from jobs.tables import Checkpoint, Job

log = logging.getLogger(__name__)

_END_OF_TIME = 253_402_300_799.0  # The last second of the year 9999, the last that ISO 8601 can write.


class _File(BaseModel):
    size: int = Field(ge=0, lt=2**63)


class _Told(BaseModel):
    """The part of a manifest that the ledger keeps. A file on disk may say anything, so it is checked first."""

    model_config = ConfigDict(protected_namespaces=())

    id: str = Field(min_length=1, max_length=100)
    name: str = Field(min_length=1, max_length=255)
    job_id: str | None
    step: int = Field(ge=0, lt=2**63)
    attempt: int = Field(ge=0, lt=2**63)
    parent: str | None
    model: str
    source: str
    config: dict[str, Any]
    train_loss: float | None
    val_loss: float | None
    created_at: float = Field(ge=0, le=_END_OF_TIME)
    files: dict[str, _File]

    def as_row(self, owner: str) -> Checkpoint:
        """As a checkpoint of no job; model and source are named as a job's settings name them."""
        return Checkpoint(
            **self.model_dump(exclude={"job_id", "config", "files", "model", "source"}),
            owner=owner,
            path=self.name,
            model=str(self.config.get("model_type", self.model)),
            source=str(self.config.get("source", self.source)),
            size_bytes=sum(file.size for file in self.files.values()),
        )


class Shelf:
    """All checkpoints under one root.

    Args:
        ledger: Knows those that jobs made.
        root: Where they all are.
    """

    def __init__(self, ledger: Database, root: Path) -> None:
        self._ledger = ledger
        self._root = root

    def find(self, owner: str, ref: str) -> Checkpoint:
        """The checkpoint of that id or name, or the newest for `latest`; `.pt` after a name is tolerated.

        Raises:
            CheckpointNotFound: neither the ledger nor the disk has it.
        """
        ref = ref.removesuffix(".pt")
        if ref == "latest":
            self.adopt_strays(owner)
            return self._newest(owner)
        try:
            return self._known(owner, ref)
        except CheckpointNotFound:
            if not self.adopt_strays(owner):
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

        What a job of the ledger made is left to that job: its worker is about to say so itself.
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
    try:
        told = _Told.model_validate(asdict(manifest))
    except ValidationError as error:
        log.warning("checkpoint %s is not adopted, its manifest makes no sense: %s", manifest.name, error)
        return False
    if told.job_id is not None and session.get(Job, told.job_id) is not None:
        return False
    return catalog.adopt_checkpoint(session, told.as_row(owner))
