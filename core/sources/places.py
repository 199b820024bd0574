"""Names below a root, and the files behind them: no name leads out, and no link is followed on the way.

Each folder of the way is opened from the one above it, so that no swap can lead out either. Light.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from core.errors import SourceForbidden, SourceNotFound

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def safe_parts(name: str) -> tuple[str, ...]:
    """The parts of a name below the root.

    Raises:
        SourceForbidden: it could lead elsewhere, or no file can be called that.
    """
    parts = PurePosixPath(name).parts
    hostile = "\x00" in name or "\\" in name or name.startswith("/") or ".." in parts or not parts
    # Half a surrogate pair, as JSON can carry it, is in no file's name; a part of a name has at most 255 bytes.
    if hostile or not name.isprintable() or any(len(part.encode(errors="replace")) > 255 for part in parts):
        raise SourceForbidden(f"source {name!r} must be a name below the sources folder, such as 'my_text.md'")
    return parts


def folder_of(root: Path, parts: tuple[str, ...]) -> int:
    """A handle on the folder that a name's last part is in; for the caller to close.

    Raises:
        OSError: it is not there, or something on the way is no folder.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for part in parts[:-1]:
        try:
            below = os.open(part, _FOLDER, dir_fd=folder)
        finally:
            os.close(folder)
        folder = below
    return folder


def open_below(root: Path, name: str) -> BinaryIO:
    """The bytes of the regular file of that name.

    Raises:
        SourceForbidden: the name leads out of the root, through a link, or to something not a regular file.
        SourceNotFound: nothing of that name.
    """
    parts = safe_parts(name)
    if not root.is_dir():
        raise SourceNotFound(f"source '{name}' does not exist: there is no sources folder yet")
    try:
        folder = folder_of(root, parts)
        try:
            # Without O_NONBLOCK a named pipe would hold the caller until somebody writes to it.
            file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        finally:
            os.close(folder)
    except FileNotFoundError:
        raise SourceNotFound(f"source '{name}' does not exist; GET /sources lists those that do") from None
    except OSError as error:
        raise SourceForbidden(f"source '{name}' cannot be opened: {error.strerror or error}") from None
    return regular(file, name)


def open_anywhere(path: Path) -> BinaryIO:
    """The bytes of a regular file anywhere on this machine, links followed.

    Raises:
        SourceNotFound, SourceForbidden: it is not there, or cannot be opened.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceNotFound(f"source '{path}' does not exist (looked in {Path.cwd()})") from None
    except OSError as error:
        raise SourceForbidden(f"source '{path}' cannot be opened: {error.strerror}") from None
    return regular(file, str(path))


def regular(handle: int, name: str) -> BinaryIO:
    """The file behind a handle, which is closed if it is none."""
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SourceForbidden(f"source '{name}' is not a regular file")
    return os.fdopen(handle, "rb")


def files_below(root: Path, *, hidden: bool = False) -> Iterator[os.DirEntry[str]]:
    """The regular files below a root in no order; hidden files and folders too, if asked for."""
    folders = [str(root)]
    while folders:
        try:
            with os.scandir(folders.pop()) as found:
                entries = list(found)
        except OSError:  # Gone since it was seen, not for us to read, or too deep for any path.
            continue
        for entry in entries:
            if entry.name.startswith(".") and not hidden:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry
