"""Files that may come from anywhere: opened only if they are regular, no link, and no larger than they can have to be.

Light: no more than the standard library.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from core.errors import CheckpointCorrupt, CheckpointUnsafe
from core.machine.disk import unreadable


@contextmanager
def open_plain(path: Path, *, is_link_allowed: bool = False) -> Iterator[BinaryIO]:
    """The bytes of a regular file.

    Raises:
        CheckpointCorrupt: it is not there.
        StorageError: the disk does not give it now.
        CheckpointUnsafe: it is a link, a pipe, a device or a folder.
    """
    # A pipe would let the reader wait for a writer that never comes.
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if is_link_allowed else os.O_NOFOLLOW)
    try:
        if path.is_symlink() and not is_link_allowed:
            raise _not_plain(path)
        handle = os.open(path, flags)
    except OSError as error:
        raise unreadable(error, f"'{_shown(path)}' cannot be read") from None
    except ValueError as error:
        raise CheckpointCorrupt(f"'{_shown(path)}' cannot be read: {error}") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _not_plain(path)
    with os.fdopen(handle, "rb") as file:
        yield file


def read_plain(path: Path, max_bytes: int, *, is_link_allowed: bool = False) -> bytes:
    """The whole content of a small regular file.

    Raises:
        CheckpointCorrupt, StorageError, CheckpointUnsafe: as for `open_plain`; the last also if it has more than
            `max_bytes`.
    """
    with open_plain(path, is_link_allowed=is_link_allowed) as file:
        # It may grow between a look at its size and the reading.
        try:
            content = file.read(max_bytes + 1)
        except OSError as error:
            raise unreadable(error, f"'{_shown(path)}' cannot be read") from None
    if len(content) > max_bytes:
        raise CheckpointUnsafe(f"'{_shown(path)}' has more than {max_bytes} bytes, so it was not read")
    return content


def _not_plain(path: Path) -> CheckpointUnsafe:
    return CheckpointUnsafe(f"'{_shown(path)}' is a link or no regular file, so it was not opened")


def _shown(path: Path) -> str:
    """Enough to find it, and no more of this machine than that."""
    return f"{path.parent.name}/{path.name}"
