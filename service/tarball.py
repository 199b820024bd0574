"""A checkpoint's folder as a tar, made while it is sent: nothing of it is on a disk or whole in memory.

Its files are opened once, without following links, and checked against the manifest through what was opened. They stay
open until the last byte has left, so that a checkpoint that is removed meanwhile is still sent whole. While it is sent
everything is hashed again: of a file that changes meanwhile the end is never sent, so the answer is shorter than it
said it would be, and nobody takes it for whole.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from pydantic import ValidationError

from core.checkpoints.manifest import FORMAT, MANIFEST, MAX_BYTES, FileEntry, Manifest
from core.errors import CheckpointCorrupt
from core.machine.disk import CHUNK_BYTES

MAX_FILES = 100
"""A checkpoint has about ten; all of them are open while it is sent."""

_READ_ONLY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Not blocking, since what has a file's name may be a pipe that nobody writes to."""

_END = bytes(2 * tarfile.BLOCKSIZE)


@dataclass(frozen=True, slots=True)
class _Member:
    """An open file; `header` is what the tar says before its bytes."""

    name: str
    descriptor: int
    entry: FileEntry
    header: bytes

    @property
    def padding(self) -> bytes:
        return bytes(-self.entry.size % tarfile.BLOCKSIZE)

    @property
    def size(self) -> int:
        return len(self.header) + self.entry.size + len(self.padding)


class Tarball:
    """All files of a checkpoint under one folder of its name; close it to let go of them.

    Args:
        root: Where the checkpoints are.
        name: The checkpoint's folder.

    Raises:
        CheckpointCorrupt: the folder is gone, or a file of it is missing, of another size, or no regular file.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        self._members: list[_Member] = []
        with ExitStack() as opened:
            self._open(root, opened)
            self._opened = opened.pop_all()

    def __enter__(self) -> Tarball:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._opened.close()

    @property
    def size(self) -> int:
        """Bytes of the whole tar."""
        return sum(member.size for member in self._members) + len(_END)

    def verify(self, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Compare every file with the manifest.

        Args:
            is_wanted: Asked again and again meanwhile.

        Returns:
            Whether it was wanted to the end.

        Raises:
            CheckpointCorrupt: names the first that differs.
        """
        return all(is_wanted() for member in self._members for _ in self._bytes_of(member))

    def chunks(self) -> Iterator[bytes]:
        """The tar in pieces of `CHUNK_BYTES` at most; each comes from the disk when it is asked for.

        Raises:
            CheckpointCorrupt: a file is no longer what it was; its last piece and all that would follow are kept back.
        """
        for member in self._members:
            yield member.header
            yield from self._bytes_of(member)
            if member.padding:
                yield member.padding
        yield _END

    def _open(self, root: Path, opened: ExitStack) -> None:
        if self.name in {"", ".."} or Path(self.name).name != self.name:
            raise CheckpointCorrupt(f"checkpoint {self.name!r} has a name that no folder has")
        folder = self._descriptor(root / self.name, os.O_DIRECTORY, None, "its folder", opened)
        raw, manifest = self._manifest(folder)
        if len(manifest.files) > MAX_FILES:
            raise self._corrupt(f"its manifest lists {len(manifest.files)} files, and a checkpoint has {MAX_FILES}")
        sealed = FileEntry(size=len(raw), sha256=hashlib.sha256(raw).hexdigest())
        # First in the tar, so that whoever reads it as it comes knows what is to come.
        for name, entry in ((MANIFEST, sealed), *manifest.files.items()):
            descriptor = self._regular_file(name, folder, opened)
            if os.fstat(descriptor).st_size != entry.size:
                raise self._damaged(name)
            self._members.append(_Member(name, descriptor, entry, self._header(name, entry, manifest)))

    def _manifest(self, folder: int) -> tuple[bytes, Manifest]:
        with ExitStack() as opened:
            raw = os.pread(self._regular_file(MANIFEST, folder, opened), MAX_BYTES + 1, 0)
        with suppress(ValidationError):
            manifest = Manifest.model_validate_json(raw)
            if len(raw) <= MAX_BYTES and manifest.format <= FORMAT:
                return raw, manifest
        raise self._corrupt("its manifest cannot be understood")

    def _regular_file(self, name: str, folder: int, opened: ExitStack) -> int:
        if Path(name).name != name:
            raise self._corrupt(f"it cannot have a file {name!r}")
        descriptor = self._descriptor(name, 0, folder, f"its file {name}", opened)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise self._corrupt(f"its file {name} is no regular file")
        return descriptor

    def _descriptor(self, path: str | Path, flags: int, folder: int | None, what: str, opened: ExitStack) -> int:
        try:
            descriptor = os.open(path, _READ_ONLY | flags, dir_fd=folder)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it has no name that a file can have"
            raise self._corrupt(f"{what} cannot be opened: {reason}") from None
        opened.callback(os.close, descriptor)
        return descriptor

    def _header(self, name: str, entry: FileEntry, manifest: Manifest) -> bytes:
        told = tarfile.TarInfo(f"{self.name}/{name}")
        told.size = entry.size
        told.mtime = int(manifest.created_at)
        return told.tobuf(tarfile.PAX_FORMAT)

    def _bytes_of(self, member: _Member) -> Iterator[bytes]:
        """A file's bytes; the last piece comes only if all of them are what the manifest says."""
        found, at = hashlib.sha256(), 0
        while at < member.entry.size:
            try:
                chunk = os.pread(member.descriptor, min(CHUNK_BYTES, member.entry.size - at), at)
            except OSError as error:
                raise self._corrupt(f"its file {member.name} cannot be read: {error.strerror}") from None
            found.update(chunk)
            at += len(chunk)
            if not chunk or (at == member.entry.size and found.hexdigest() != member.entry.sha256):
                raise self._damaged(member.name)
            yield chunk
        if member.entry.size == 0 and found.hexdigest() != member.entry.sha256:
            raise self._damaged(member.name)

    def _damaged(self, name: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"checkpoint '{self.name}' is damaged: {name} is not what was saved")

    def _corrupt(self, reason: str) -> CheckpointCorrupt:
        return CheckpointCorrupt(f"checkpoint '{self.name}' cannot be sent: {reason}")
