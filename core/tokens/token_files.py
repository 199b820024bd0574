"""Tokens on the disk: written once as they come, then read through memory maps by any number of runs.

    tokens      int32, one after the other: the id of a token that is learnt, ~id of one that is only read
    starts      int64, where each example begins, and where the last one ends
    tail        JSON: how many of both, and how many rows were read and left out
    8 bytes     length of the tail

What is being written has another name, and beside it a note of how far it got for good: after a kill it goes on there.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.machine import disk
from core.machine.disk import Meanwhile

NOTE_SECONDS = 5.0
LOOK_SECONDS = 0.2

Stored = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TokenFile:
    """The tokens of one source: `stored` (num_tokens,), `starts` (num_examples + 1,), and what was left out."""

    stored: Stored
    starts: NDArray[np.int64]
    told: dict[str, Any]

    @property
    def num_examples(self) -> int:
        """Examples, or documents of a text."""
        return len(self.starts) - 1


def ids_of(stored: Stored) -> Stored:
    """The tokens themselves, learnt or not."""
    return np.where(stored < 0, ~stored, stored)


def open_tokens(path: Path) -> TokenFile:
    """A finished file, mapped."""
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(8), "little")
        file.seek(-8 - size, os.SEEK_END)
        told = json.loads(file.read(size))
    num_tokens, num_starts = told["num_tokens"], told["num_examples"] + 1
    stored = np.memmap(path, np.int32, "r", 0, (num_tokens,)) if num_tokens else np.zeros(0, np.int32)
    starts = np.memmap(path, np.uint8, "r", 4 * num_tokens, (8 * num_starts,)).view(np.int64)
    return TokenFile(stored, starts, told)


@dataclass(slots=True)
class Progress:
    """How far a file has come for good: rows that were read, and what they gave."""

    num_rows: int = 0
    num_tokens: int = 0
    num_examples: int = 0
    num_bad_rows: int = 0
    bad_rows: list[tuple[int, str]] = field(default_factory=list)


class TokenWriter:
    """Writes one file; `note` makes what was added so far survive a kill.

    Args:
        path: Where the file will be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tokens_path = path.with_suffix(".part")
        self._starts_path = path.with_suffix(".starts")
        self._note_path = path.with_suffix(".note")
        self.progress = self._noted()
        self._tokens = self._reopened(self._tokens_path, 4 * self.progress.num_tokens)
        self._starts = self._reopened(self._starts_path, 8 * self.progress.num_examples)
        self._noted_at = time.monotonic()

    def add(self, stored: Stored, lengths: Sequence[int] | NDArray[np.int64]) -> None:
        """More examples, one after the other, each of its length."""
        ends = self.progress.num_tokens + np.cumsum(lengths, dtype=np.int64)
        self._starts.write((ends - lengths).tobytes())
        self._tokens.write(np.ascontiguousarray(stored, np.int32).tobytes())
        self.progress.num_tokens += len(stored)
        self.progress.num_examples += len(ends)

    def note(self) -> None:
        """Now and then, at the end of a row: from here on nothing up to here is done again."""
        if time.monotonic() - self._noted_at < NOTE_SECONDS:
            return
        for file in (self._tokens, self._starts):
            file.flush()
            os.fsync(file.fileno())
        written = self._note_path.with_suffix(".noted")
        written.write_text(json.dumps(asdict(self.progress)))
        written.replace(self._note_path)
        self._noted_at = time.monotonic()

    def publish(self) -> None:
        """The whole file under its name, from one moment to the next."""
        self._starts.write(np.int64(self.progress.num_tokens).tobytes())
        self._starts.close()
        with self._starts_path.open("rb") as starts:
            while chunk := starts.read(disk.CHUNK_BYTES):
                self._tokens.write(chunk)
        tail = json.dumps(asdict(self.progress)).encode()
        self._tokens.write(tail + len(tail).to_bytes(8, "little"))
        self._tokens.flush()
        os.fsync(self._tokens.fileno())
        self._tokens.close()
        self._tokens_path.replace(self._path)
        disk.sync_folder(self._path.parent)
        self._starts_path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave it to whoever goes on."""
        self._tokens.close()
        self._starts.close()

    def _noted(self) -> Progress:
        """What an earlier writer noted, if its files have as much; else this one begins anew."""
        try:
            noted = Progress(**json.loads(self._note_path.read_text()))
            tokens, starts = self._tokens_path.stat().st_size, self._starts_path.stat().st_size
        except (OSError, ValueError, TypeError):
            return Progress()
        return noted if tokens >= 4 * noted.num_tokens and starts >= 8 * noted.num_examples else Progress()

    def _reopened(self, path: Path, size: int) -> Any:
        """A file with exactly what was noted."""
        file = path.open("r+b" if path.exists() else "w+b")
        file.truncate(size)
        file.seek(size)
        return file


def forget(path: Path) -> None:
    """Remove what was written of a file that cannot be finished."""
    for suffix in (".part", ".starts", ".note", ".noted"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def make_room(folder: Path, at_most_bytes: int, *, keep: Path) -> None:
    """Remove the files that were not used for longest, until all of them are no more than so many bytes.

    Who has one open goes on reading it.
    """
    files = sorted(folder.glob("*.tokens"), key=lambda path: path.stat().st_mtime)
    size = sum(path.stat().st_size for path in files)
    for path in files:
        if size <= at_most_bytes:
            return
        if path != keep:
            size -= path.stat().st_size
            path.unlink(missing_ok=True)


@contextmanager
def alone(path: Path, meanwhile: Meanwhile) -> Iterator[None]:
    """One process at a time prepares a file; the others wait until it is done or dead."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("a") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                meanwhile()
                time.sleep(LOOK_SECONDS)
        yield
