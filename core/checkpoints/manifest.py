"""What a checkpoint says of itself: its manifest, found on a disk and believed only after a check. Light."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from core.errors import CheckpointCorrupt, CheckpointError, CheckpointNotFound
from core.io_utils import get_data_source_name
from core.machine.disk import unreadable
from core.machine.outside import read_plain

MANIFEST = "manifest.json"
FORMAT = 2
"""2: the manifest is sealed, so that not one of its own values can change unnoticed. 1 is read for ever."""
SEAL = "seal"
MAX_BYTES = 1 << 20
"""It lists a dozen files and a configuration; a larger one is not read."""
PINNED = "PINNED"
"""A file of this name in a checkpoint's folder keeps it from being retired; no manifest lists it."""
END_OF_TIME = 253_402_300_799.0
"""The last second of the year 9999, the last that ISO 8601 can write."""

Count = Annotated[int, Field(ge=0, lt=2**30)]
"""So that the steps of two runs, one after the other, still fit into a column of 32 bits."""
Fence = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(ge=0, lt=2**50)]
"""In bytes; a petabyte is no checkpoint of ours."""
Moment = Annotated[float, Field(ge=0, le=END_OF_TIME)]


class FileEntry(BaseModel):
    """What a manifest says of one file."""

    model_config = ConfigDict(frozen=True)

    size: Size
    sha256: str


class Manifest(BaseModel):
    """What a checkpoint says of itself; `files` proves the rest. Found on a disk it may say anything: it is checked."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    id: str = Field(min_length=1, max_length=100)
    name: str = Field(min_length=1, max_length=240)
    step: Count
    end_step: Count
    model: str
    source: str
    created_at: Moment
    config: dict[str, Any]
    train_loss: float | None = None
    val_loss: float | None = None
    job_id: str | None = None
    attempt: Count = 0
    fence: Fence = 0
    parent: str | None = None
    run: str | None = None
    """What all checkpoints of one run have in common; a job's own id."""
    hashes: dict[str, str] = {}
    versions: dict[str, str] = {}
    surroundings: dict[str, str] = {}
    """Where it was made, see `core.checkpoints.exactness`."""
    files: dict[str, FileEntry] = Field({}, max_length=1000)
    format: int = FORMAT

    @field_validator("train_loss", "val_loss")
    @classmethod
    def _only_numbers(cls, loss: float | None) -> float | None:
        return loss if loss is not None and math.isfinite(loss) else None

    def to_json(self) -> str:
        """What a folder keeps: everything above, and the seal over it."""
        said = self.model_dump(mode="json")
        return json.dumps({**said, SEAL: seal_of(said)}, indent=1)

    @property
    def size_bytes(self) -> int:
        """Size of all files the manifest lists."""
        return sum(entry.size for entry in self.files.values())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published checkpoint: its folder and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def run(self) -> str:
        """The same for all checkpoints of one run; those of the first release know their job, or only themselves."""
        return self.manifest.run or self.manifest.job_id or self.manifest.id

    @property
    def step(self) -> int:
        """Optimizer updates made."""
        return self.manifest.step

    @property
    def created_at(self) -> float:
        """Unix seconds."""
        return self.manifest.created_at

    @property
    def val_loss(self) -> float | None:
        """Measured at this step, in nats per token."""
        return self.manifest.val_loss

    @property
    def pinned(self) -> bool:
        """Whether a person asked for it to stay."""
        return (self.path / PINNED).exists()


def new_manifest(
    *, model: str, source: str, step: int, end_step: int, config: Mapping[str, Any], **more: Any
) -> Manifest:
    """A manifest with a fresh id and the name that belongs to it; `source` is a path or name."""
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
    """The checkpoint in `folder`, its manifest checked, its files not yet read.

    Raises:
        CheckpointNotFound: there is no such folder.
        CheckpointCorrupt: there is no manifest, or it cannot be understood.
        StorageError: the disk does not give it now.
    """
    try:
        is_there = folder.is_dir()
    except OSError as error:
        raise unreadable(error, f"checkpoint '{folder.name}' cannot be read") from None
    if not is_there:
        raise CheckpointNotFound(f"no checkpoint at '{folder}'")
    try:
        content = read_plain(folder / MANIFEST, MAX_BYTES)
        manifest = Manifest.model_validate_json(content)
    except (CheckpointError, ValidationError) as error:
        reason = error.message if isinstance(error, CheckpointError) else _first_complaint(error)
        raise CheckpointCorrupt(f"checkpoint '{folder.name}' has no readable manifest: {reason}") from None
    if manifest.format > FORMAT:
        raise CheckpointCorrupt(f"checkpoint '{folder.name}' was written by a newer Ratchet (format {manifest.format})")
    if not _is_intact(json.loads(content), manifest.format):
        raise CheckpointCorrupt(f"checkpoint '{folder.name}' is damaged: {MANIFEST} is not what was saved")
    return Checkpoint(folder, manifest)


def seal_of(said: Mapping[str, Any]) -> str:
    """SHA-256 of what a manifest says, without the seal itself."""
    unsealed = {name: value for name, value in said.items() if name != SEAL}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True).encode()).hexdigest()


def hash_of_config(config: Mapping[str, Any]) -> str:
    """SHA-256 of a run's settings."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _is_intact(said: dict[str, Any], version: int) -> bool:
    if SEAL in said or version >= 2:
        return bool(said.get(SEAL) == seal_of(said))
    # The first format has no seal, but a hash of the settings, which a flipped bit would change most quietly.
    kept = said.get("hashes", {}).get("config")
    return kept is None or kept == hash_of_config(said["config"])


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
