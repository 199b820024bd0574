"""Bytes that are to be on the disk for good: synced, hashed in chunks, and what to say if the disk refuses."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from core.errors import CheckpointCorrupt, DiskFull, StorageError

CHUNK_BYTES = 1 << 20

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_BROKEN = frozenset({errno.EIO, errno.EROFS})
_NOT_AS_SAVED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG})

Meanwhile = Callable[[], object]
"""Called again and again while files are read, which takes minutes for large ones."""


def nothing() -> None:
    """What most callers do meanwhile."""


def sync_file(path: Path) -> None:
    """Return when the file's bytes are on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the folder's entries are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_room(folder: Path, size_bytes: int) -> None:
    """Begin nothing that cannot fit.

    Raises:
        OSError: ENOSPC, as writing it would in the end.
    """
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        said = f"it takes about {size_bytes >> 20:,} MiB and {free >> 20:,} MiB are free"
        raise OSError(errno.ENOSPC, said)


def digest(path: Path, meanwhile: Meanwhile) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    found, chunk = hashlib.sha256(), memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        meanwhile()
        while size := file.readinto(chunk):
            found.update(chunk[:size])
            meanwhile()
    return found.hexdigest()


def unreadable(error: OSError, said: str) -> CheckpointCorrupt | StorageError:
    """What a file that cannot be read means: it is not there as it was saved, or the disk did not give it this time.

    Args:
        said: What cannot be read, up to the reason.
    """
    kind = CheckpointCorrupt if error.errno in _NOT_AS_SAVED else StorageError
    return kind(f"{said}: {error.strerror or type(error).__name__}")


def refusal_of(error: BaseException, name: str) -> StorageError | None:
    """What to tell the user if the disk is to blame; safetensors tells the number of an error in its text alone."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    code = error.errno if isinstance(error, OSError) else int(found[1]) if found else None
    if code in _FULL:
        told = error.strerror if isinstance(error, OSError) else os.strerror(code)
        said = f"checkpoint '{name}' could not be saved: {told}"
        return DiskFull(f"{said}; make room where the checkpoints are, then resume: the earlier ones are whole")
    if code in _BROKEN:
        return StorageError(f"checkpoint '{name}' could not be saved: {os.strerror(code)}; the earlier ones are kept")
    return None
