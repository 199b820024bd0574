"""A checkpoint that comes as a tar, unpacked whole or not at all."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, cast

import httpx2

from client.errors import ClientError
from core.checkpointing import verify
from core.checkpoints.manifest import MANIFEST, Checkpoint, read_manifest
from core.errors import CheckpointCorrupt, CheckpointError
from core.machine import disk

STAGING_PREFIX = "tmp-download-"
"""Not the name of a checkpoint, so that nobody takes what a killed download leaves for one."""


def unpack(pieces: Iterator[bytes], name: str, to: Path) -> Path:
    """Unpack the tar of the checkpoint `name` into the folder `to`, compare every file, and give it its name last.

    Returns:
        The checkpoint's folder.

    Raises:
        ClientError: it broke off, is damaged, is there already, or cannot be written; nothing of it is left.
    """
    final = to / name
    if name in {"", ".", ".."} or PurePosixPath(name).name != name:
        raise ClientError(f"The service names a checkpoint {name!r}, which no folder can be called.")
    try:
        to.mkdir(parents=True, exist_ok=True)
        if final.exists():
            raise ClientError(f"{final} is there already.")
        with tempfile.TemporaryDirectory(prefix=STAGING_PREFIX, dir=to, ignore_cleanup_errors=True) as staged:
            _extract(pieces, name, Path(staged))
            _publish(Path(staged) / name, final)
    except httpx2.TransportError as error:
        raise ClientError(f"The download of {name} broke off ({error}); nothing of it was kept.") from None
    except tarfile.TarError as error:
        raise ClientError(f"What came is not the checkpoint {name}: {error}.") from None
    except CheckpointError as error:
        raise ClientError(f"What came is not whole, and was not kept: {error.message}.") from None
    except OSError as error:
        raise ClientError(f"{final} cannot be written: {error.strerror}.") from None
    return final


def _extract(pieces: Iterator[bytes], name: str, staged: Path) -> None:
    with tarfile.open(fileobj=cast(IO[bytes], _Pieces(pieces)), mode="r|", bufsize=disk.CHUNK_BYTES) as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if not member.isreg() or path.parts != (name, path.name):
                raise tarfile.TarError(f"{member.name!r} is no file of it")
            tar.extract(member, staged, filter="data")
    # A tar says where it ends, and the connection whether that was the end.
    for _ in pieces:
        pass


def _publish(unpacked: Path, final: Path) -> None:
    _check(read_manifest(unpacked))
    for path in unpacked.iterdir():
        disk.sync_file(path)
    disk.sync_folder(unpacked)
    unpacked.rename(final)
    disk.sync_folder(final.parent)


def _check(saved: Checkpoint) -> None:
    """It is the checkpoint that its folder's name says, all of it, and nothing else comes along."""
    folder, manifest = saved.path, saved.manifest
    if manifest.name != folder.name:
        raise CheckpointCorrupt(f"its folder is called '{folder.name}', and its manifest says '{manifest.name}'")
    unlisted = {path.name for path in folder.iterdir()} - {MANIFEST, *manifest.files}
    if unlisted:
        raise CheckpointCorrupt(f"its manifest lists no file {min(unlisted)!r}")
    verify(saved)


class _Pieces:
    """What `tarfile` asks of a file."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._left = b""

    def read(self, size: int) -> bytes:
        """Up to so many bytes; none at the end."""
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = piece
        head, self._left = self._left[:size], self._left[size:]
        return head
