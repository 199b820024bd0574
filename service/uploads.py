"""Sources that come and go over HTTP: written beside their place under a hidden name, then given their name at once.

Whoever opens a source sees the old file or the new one, whole. What a killed service leaves is hidden, and is removed
by the first upload a day later.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from sqlmodel import Session, col, select

from core.errors import (
    DiskFull,
    SourceExists,
    SourceForbidden,
    SourceInUse,
    SourceNotFound,
    SourceQuota,
    SourceTooLarge,
    StorageError,
)
from core.sources.files import SourceFacts, SourceFolder
from core.sources.places import files_below, folder_of, safe_parts
from jobs.tables import FINAL, Job
from service.settings import ServiceSettings

HIDDEN_PREFIX = ".upload-"

ABANDONED_SECONDS = 24 * 3600

MAX_NAME_LENGTH = 1024
"""As a job may name it."""

MAX_FOLDERS = 16

SPARE_BYTES = 64 << 20
"""Of the disk, which may be the ledger's, too."""

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_WITHOUT_HARD_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True)
class Room:
    """How much may come.

    Args:
        max_bytes: Of one file.
        quota_bytes: Of all that is below the root, the new file among it and the replaced one not.
    """

    max_bytes: int
    quota_bytes: int

    @classmethod
    def of(cls, settings: ServiceSettings) -> Room:
        """As the operator decides."""
        return cls(settings.max_source_bytes, settings.sources_quota_bytes)


class Upload:
    """One file on its way. Closing it removes what was not published.

    Args:
        root: Of the sources; made if it is not there.
        name: Below the root; folders on its way are made.
        room: How much may come.

    Raises:
        SourceForbidden: no file may be called that, or something else is there.
        StorageError: it cannot be written.
    """

    def __init__(self, root: Path, name: str, room: Room) -> None:
        self._parts = visible_parts(name)
        self._root = root
        self._name = str(PurePosixPath(*self._parts))
        self._room = room
        self._num_bytes = 0
        self._hidden = f"{HIDDEN_PREFIX}{secrets.token_hex(8)}"
        with _disk_trouble(self._name):
            root.mkdir(parents=True, exist_ok=True)
            sweep_abandoned(root)
            self._made = _make_folders(root, self._parts)
            self._folder = folder_of(root, self._parts)
            try:
                self._replaced_bytes = _size_in(self._folder, self._parts[-1], self._name) or 0
                self._others_bytes = bytes_below(root) - self._replaced_bytes
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                handle = os.open(self._hidden, flags, 0o666, dir_fd=self._folder)
            except BaseException:
                os.close(self._folder)
                _remove_folders(root, self._parts, self._made)
                raise
        # Without a buffer, closing has nothing left to write that a full disk could refuse.
        self._file = cast(BinaryIO, os.fdopen(handle, "r+b", buffering=0))

    def close(self) -> None:
        """Leave nothing behind but what was published."""
        self._file.close()
        with suppress(FileNotFoundError):  # It has its name by now.
            os.unlink(self._hidden, dir_fd=self._folder)
            _remove_folders(self._root, self._parts, self._made)
        os.close(self._folder)

    def expect(self, num_bytes: int) -> None:
        """Refuse what is said to be too much before it comes.

        Raises:
            SourceTooLarge, SourceQuota, DiskFull: there is no room for so many bytes more.
        """
        total = self._num_bytes + num_bytes
        if total > self._room.max_bytes:
            said = f"is larger than the {self._room.max_bytes} bytes that one source may have"
            raise SourceTooLarge(f"source '{self._name}' {said}")
        if self._others_bytes + total > self._room.quota_bytes:
            said = f"{self._others_bytes} of the {self._room.quota_bytes} bytes for all sources are taken"
            raise SourceQuota(f"there is no room for source '{self._name}': {said}; delete some, then send it again")
        with _disk_trouble(self._name):
            free = os.statvfs(self._folder)
        if free.f_bavail * free.f_frsize < num_bytes + SPARE_BYTES:
            raise DiskFull(
                f"source '{self._name}' could not be saved: the disk of the sources is full; make room there"
            )

    def write(self, piece: bytes) -> None:
        """Add a piece.

        Raises:
            SourceTooLarge, SourceQuota, StorageError: it cannot be taken.
        """
        self.expect(len(piece))
        with _disk_trouble(self._name):
            left = memoryview(piece)
            while left:
                left = left[self._file.write(left) :]
        self._num_bytes += len(piece)

    def examine(self, columns: Mapping[str, str]) -> SourceFacts:
        """What is in it, once all of it is there and on the disk.

        Raises:
            SourceError: it cannot be used.
        """
        with _disk_trouble(self._name):
            os.fsync(self._file.fileno())
        return SourceFolder(self._root).inspect_open(self._name, self._file, columns)

    def publish(self, *, may_replace: bool) -> bool:
        """Give it its name; True if there was nothing of that name.

        Raises:
            SourceExists: there is, and it may not be replaced.
            SourceForbidden: there is something else of that name.
            SourceQuota: others have come meanwhile.
        """
        name = self._parts[-1]
        replaced_bytes = _size_in(self._folder, name, self._name)
        # Its own hidden file is among them by now.
        self._others_bytes = bytes_below(self._root) - self._num_bytes - (replaced_bytes or 0)
        self.expect(0)
        with _disk_trouble(self._name):
            if not may_replace:
                self._take_name(name)
            os.rename(self._hidden, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            # If it has the name already, renaming changes nothing.
            with suppress(FileNotFoundError):
                os.unlink(self._hidden, dir_fd=self._folder)
            os.fsync(self._folder)
        return replaced_bytes is None

    def _take_name(self, name: str) -> None:
        """Of two that come at once, one gets it."""
        try:
            os.link(self._hidden, name, src_dir_fd=self._folder, dst_dir_fd=self._folder, follow_symlinks=False)
        except FileExistsError:
            raise _exists(self._name) from None
        except OSError as error:
            if error.errno not in _WITHOUT_HARD_LINKS:
                raise
            if _size_in(self._folder, name, self._name) is not None:
                raise _exists(self._name) from None


def visible_parts(name: str) -> tuple[str, ...]:
    """The parts of a name that a source can be given.

    Raises:
        SourceForbidden: it leads elsewhere, is hidden, or is too long or too deep.
    """
    parts = safe_parts(name)
    if any(part.startswith(".") for part in parts):
        raise SourceForbidden(f"source {name!r} would be hidden: no part of its name may begin with a dot")
    if len(name) > MAX_NAME_LENGTH or len(parts) > MAX_FOLDERS + 1:
        said = f"may have at most {MAX_NAME_LENGTH} characters and {MAX_FOLDERS} folders"
        raise SourceForbidden(f"the name of source '{name[:40]}…' {said}")
    return parts


def check_replaceable(root: Path, name: str, *, may_replace: bool) -> bool:
    """Whether a source of that name is there.

    Raises:
        SourceExists: it is, and may not be replaced.
        SourceForbidden: something is there that is no source.
    """
    parts = visible_parts(name)
    try:
        folder = folder_of(root, parts)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise SourceForbidden(f"source '{name}' cannot be written: {error.strerror}") from None
    try:
        found = _size_in(folder, parts[-1], name)
    finally:
        os.close(folder)
    if found is not None and not may_replace:
        raise _exists(name)
    return found is not None


def check_unused(session: Session, name: str) -> None:
    """Return if no job that has not ended names a source.

    Raises:
        SourceInUse: one does, whosever it is.
    """
    parts = PurePosixPath(name).parts
    unfinished = select(Job.id, Job.config).where(col(Job.state).not_in(FINAL))
    for job_id, config in session.exec(unfinished):
        if any(PurePosixPath(source).parts == parts for source in _sources_of(config)):
            said = f"job {job_id} has not ended and could not go on without it as it is; cancel the job, or wait"
            raise SourceInUse(f"source '{name}' is in use: {said}")


def delete(root: Path, name: str) -> None:
    """Remove a source.

    Raises:
        SourceNotFound: there is none of that name.
        SourceForbidden: the name leads elsewhere, or to something that is no source.
    """
    parts = visible_parts(name)
    if not check_replaceable(root, name, may_replace=True):
        raise SourceNotFound(f"source '{name}' does not exist; GET /sources lists those that do")
    with _disk_trouble(name):
        folder = folder_of(root, parts)
        try:
            os.unlink(parts[-1], dir_fd=folder)
            os.fsync(folder)
        except FileNotFoundError:
            raise SourceNotFound(f"source '{name}' does not exist any more") from None
        finally:
            os.close(folder)


def bytes_below(root: Path) -> int:
    """Of all files there, the hidden ones among them."""
    return sum(status.st_size for _, status in _statuses(root))


def sweep_abandoned(root: Path) -> None:
    """Remove what uploads have left that nobody goes on with."""
    for entry, status in _statuses(root):
        if entry.name.startswith(HIDDEN_PREFIX) and time.time() - status.st_mtime > ABANDONED_SECONDS:
            with suppress(OSError):
                Path(entry.path).unlink()


def _statuses(root: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    for entry in files_below(root, hidden=True):
        with suppress(OSError):  # Gone since it was seen.
            yield entry, entry.stat(follow_symlinks=False)


def _size_in(folder: int, part: str, name: str) -> int | None:
    """Size of a file in an open folder; None if nothing is there."""
    try:
        status = os.stat(part, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise SourceForbidden(f"source '{name}' is not a regular file")
    return status.st_size


def _make_folders(root: Path, parts: tuple[str, ...]) -> list[int]:
    """Make the folders on the way; returns at which depths there was none."""
    made = []
    for depth in range(1, len(parts)):
        folder = folder_of(root, parts[:depth])
        try:
            os.mkdir(parts[depth - 1], dir_fd=folder)
            os.fsync(folder)
            made.append(depth)
        except FileExistsError:
            pass
        finally:
            os.close(folder)
    return made


def _remove_folders(root: Path, parts: tuple[str, ...], made: list[int]) -> None:
    """Those of them in which nothing else is."""
    for depth in reversed(made):
        with suppress(OSError):
            folder = folder_of(root, parts[:depth])
            try:
                os.rmdir(parts[depth - 1], dir_fd=folder)
            finally:
                os.close(folder)


def _sources_of(config: Mapping[str, Any]) -> list[str]:
    several = config.get("sources") or ()
    return [str(config.get("source", "")), *(str(share.get("source", "")) for share in several)]


def _exists(name: str) -> SourceExists:
    return SourceExists(f"source '{name}' is there already, and was not to be replaced")


@contextmanager
def _disk_trouble(name: str) -> Iterator[None]:
    """What the disk refuses, said in our words."""
    try:
        yield
    except OSError as error:
        said = f"source '{name}' could not be changed: {error.strerror or error}"
        if error.errno in _FULL:
            raise DiskFull(f"{said}; make room on the disk of the sources") from None
        if error.errno in {errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG}:
            raise SourceForbidden(f"{said}; something that is no folder is on the way") from None
        raise StorageError(said) from None
