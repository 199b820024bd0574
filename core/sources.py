"""Training texts on disk: named under one root, opened safely, checked before anything trains.

Light: the service uses it at submit, the trainer when it reads. Below the root no symbolic link is followed, whatever
it points at: each folder of the way is opened from the one above it, so that no swap can lead out.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from core.errors import SourceEmpty, SourceForbidden, SourceNotFound, SourceNotText, SourceTooShort

CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """What is known of a text without a tokenizer."""

    size_bytes: int
    num_characters: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceText:
    """A text that has been read: its name for people, its characters, and the hash of its bytes."""

    name: str
    text: str
    sha256: str


class SourceFolder:
    """The texts under one root, by relative name.

    Args:
        root: The folder; it need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Relative names of the regular files below the root, sorted; hidden ones and links are left out."""
        return sorted(_regular_files(self.root, PurePosixPath()))

    def open(self, name: str) -> BinaryIO:
        """The text's bytes.

        Raises:
            SourceForbidden: the name leads out of the root, through a link, or to something not a regular file.
            SourceNotFound: nothing of that name.
        """
        parts = _safe_parts(name)
        try:
            folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise SourceNotFound(f"source '{name}' does not exist: there is no sources folder yet") from None
        try:
            for part in parts[:-1]:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
                os.close(folder)
                folder = below
            # Without O_NONBLOCK a named pipe would hold the caller until somebody writes to it.
            file = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except FileNotFoundError:
            raise SourceNotFound(f"source '{name}' does not exist; GET /sources lists those that do") from None
        except (NotADirectoryError, OSError) as error:
            raise SourceForbidden(f"source '{name}' cannot be opened: {error.strerror or error}") from None
        finally:
            os.close(folder)
        return _regular(file, name)

    def inspect(self, name: str) -> SourceFacts:
        """Size, characters and hash, remembered for as long as the file does not change.

        Raises:
            SourceNotText: with the byte offset.
            SourceEmpty: nothing but white space.
        """
        with self.open(name) as file:
            status = os.fstat(file.fileno())
        return _inspect(self.root, name, status.st_mtime_ns, status.st_size, status.st_ino)

    def read(self, name: str) -> SourceText:
        """The whole text."""
        with self.open(name) as file:
            return _decode(name, file.read())


def load_raw_text(data_source: str | Path) -> str:
    """The text of a file anywhere on this machine, for a run from the command line.

    Raises:
        SourceNotFound, SourceForbidden, SourceNotText, SourceEmpty: said in one sentence.
    """
    return read_source(data_source).text


def read_source(data_source: str | Path) -> SourceText:
    """As `load_raw_text`, with the hash that a checkpoint keeps."""
    path = Path(data_source)
    try:
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SourceNotFound(f"source '{path}' does not exist (looked in {Path.cwd()})") from None
    except OSError as error:
        raise SourceForbidden(f"source '{path}' cannot be opened: {error.strerror}") from None
    with _regular(file, str(path)) as opened:
        return _decode(str(path), opened.read())


def check_length(num_tokens: int, block_size: int, what: str = "tokens") -> None:
    """Refuse a text that has not even one block and the token that follows it.

    Raises:
        SourceTooShort: with both numbers.
    """
    if num_tokens < block_size + 1:
        raise SourceTooShort(
            f"the source has {num_tokens} {what}, but block_size {block_size} needs at least {block_size + 1}: "
            "give a longer text or a smaller block_size"
        )


def _safe_parts(name: str) -> tuple[str, ...]:
    parts = PurePosixPath(name).parts
    hostile = "\x00" in name or "\\" in name or name.startswith("/") or ".." in parts or not parts
    # Half a surrogate pair, as JSON can carry it, is in no file's name; a part of a name has at most 255 bytes.
    if hostile or not name.isprintable() or any(len(part.encode(errors="replace")) > 255 for part in parts):
        raise SourceForbidden(f"source {name!r} must be a name below the sources folder, such as 'my_text.md'")
    return parts


def _regular(file: int, name: str) -> BinaryIO:
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise SourceForbidden(f"source '{name}' is not a regular file")
    return os.fdopen(file, "rb")


def _regular_files(root: Path, below: PurePosixPath) -> Iterator[str]:
    try:
        entries = list(os.scandir(root / below))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _regular_files(root, below / entry.name)
        elif entry.is_file(follow_symlinks=False):
            yield str(below / entry.name)


@lru_cache(maxsize=256)
def _inspect(root: Path, name: str, _mtime_ns: int, size: int, _inode: int) -> SourceFacts:
    """Streamed, so that a text larger than memory can be checked; the unused arguments are the cache's key."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    digest = hashlib.sha256()
    num_characters = consumed = 0
    blank = True
    with SourceFolder(root).open(name) as file:
        while True:
            chunk = file.read(CHUNK_BYTES)
            held = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                raise _not_text(name, consumed - held + error.start) from None
            if not chunk:
                break
            digest.update(chunk)
            consumed += len(chunk)
            num_characters += len(text)
            blank = blank and not text.strip()
    if blank:
        raise _empty(name)
    return SourceFacts(size, num_characters, digest.hexdigest())


def _decode(name: str, raw: bytes) -> SourceText:
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_text(name, error.start) from None
    if not text.strip():
        raise _empty(name)
    return SourceText(name, text, hashlib.sha256(raw).hexdigest())


def _not_text(name: str, offset: int) -> SourceNotText:
    return SourceNotText(f"source '{name}' is not UTF-8 text: the byte at offset {offset} cannot be decoded")


def _empty(name: str) -> SourceEmpty:
    return SourceEmpty(f"source '{name}' is empty: there is nothing to learn from")
