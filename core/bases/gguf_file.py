"""The header of a GGUF file: what a model is and where its weights lie, looked at before anything is made of it.

A file is the letters GGUF, its version, the numbers of tensors and of settings, the settings, the tensors' names,
shapes, types and places, and then the tensors' bytes. Nothing but the header is read here, and no more of it than a
header can have. Light: no more than the standard library.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from core.errors import CheckpointCorrupt, CheckpointUnsafe
from core.machine.outside import open_plain

GGUF_ARCHITECTURES = ("gpt2", "llama", "qwen2", "qwen3")
"""Those whose layout `core.models.gguf` knows."""

VERSIONS = (2, 3)
MAX_HEADER_BYTES = 64 << 20
"""Tokens and merges of the largest vocabularies that are known take a quarter of it."""

MAX_TENSORS = 25_000
MAX_SETTINGS = 10_000
MAX_ITEMS = 2_000_000
"""In all lists together."""

MAX_DIMENSIONS = 4
MAX_SIZE = 2**48

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The format's number of a type → its letter in `struct`."""

_STRING, _LIST = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where a tensor is; `shape` has the outermost dimension first, as everyone but the format has it."""

    name: str
    shape: tuple[int, ...]
    type: int
    begin: int
    """Of its bytes, from the beginning of the file."""


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a file says of itself."""

    settings: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    size_bytes: int
    """Of the whole file."""
    sha256: str
    """Of the header alone: of settings, tokens, and where which tensor is."""

    @property
    def architecture(self) -> str:
        """`llama`, `qwen2`, …; empty if it does not say."""
        found = self.settings.get("general.architecture")
        return found if isinstance(found, str) else ""

    @property
    def num_parameters(self) -> int:
        """Of all tensors together."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def setting(self, name: str) -> Any:
        """One of the architecture's own: `block_count` is `llama.block_count` of a llama."""
        return self.settings.get(f"{self.architecture}.{name}")


class _Unsound(Exception):
    """What is wrong with a header."""


def is_gguf_folder(folder: Path) -> bool:
    """Whether its weights are in a GGUF file and in no other."""
    return bool(gguf_files(folder)) and not any(folder.glob("*.safetensors"))


def gguf_files(folder: Path) -> list[Path]:
    """The GGUF files of a folder, by name."""
    return sorted(folder.glob("*.gguf"))


def read_gguf_header(path: Path, *, is_link_allowed: bool = False) -> GgufHeader:
    """Look through the header of a GGUF file.

    Raises:
        CheckpointCorrupt: it is not there, is cut short, or its header is not true of it.
        CheckpointUnsafe: it is a link or no regular file, or its header is longer than any that is needed.
    """
    called = f"'{path.parent.name}/{path.name}'"
    with open_plain(path, is_link_allowed=is_link_allowed) as file, _one_sentence(called):
        size = file.seek(0, 2)
        file.seek(0)
        return _Reader(file, called, size).header()


@contextmanager
def _one_sentence(called: str) -> Iterator[None]:
    try:
        yield
    except _Unsound as error:
        raise CheckpointCorrupt(f"{called} is no valid GGUF file: {error}") from None


class _Reader:
    """Reads a header from its beginning to its end, and counts what it costs."""

    def __init__(self, file: BinaryIO, called: str, size: int) -> None:
        self._file = file
        self._called = called
        self._size = size
        self._num_read = 0
        self._num_items = 0
        self._hash = hashlib.sha256()

    def header(self) -> GgufHeader:
        """The whole."""
        if self._take(4) != b"GGUF":
            raise _Unsound("it does not begin with the letters GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise _Unsound(f"it is of version {version}, and {' and '.join(map(str, VERSIONS))} are known")
        num_tensors, num_settings = self._count("tensors", MAX_TENSORS), self._count("settings", MAX_SETTINGS)
        settings = dict(self._each("settings", num_settings, self._setting))
        places = dict(self._each("tensors", num_tensors, self._tensor))
        alignment = settings.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise _Unsound("its alignment is none")
        begin = -(-self._num_read // alignment) * alignment
        tensors = tuple(GgufTensor(name, shape, kind, begin + at) for name, (shape, kind, at) in places.items())
        if outside := [tensor.name for tensor in tensors if tensor.begin >= self._size]:
            raise _Unsound(f"it ends before its tensor {outside[0][:80]!r} begins")
        return GgufHeader(settings, tensors, self._size, self._hash.hexdigest())

    def _each(self, what: str, count: int, read: Callable[[], tuple[str, Any]]) -> list[tuple[str, Any]]:
        found = [read() for _ in range(count)]
        if len(dict(found)) < count:
            raise _Unsound(f"two of its {what} have one name")
        return found

    def _setting(self) -> tuple[str, Any]:
        return self._text(), self._value(self._number("I"))

    def _tensor(self) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self._text()
        num_dimensions = self._number("I")
        if not 1 <= num_dimensions <= MAX_DIMENSIONS:
            raise _Unsound(f"tensor {name[:80]!r} has {num_dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(num_dimensions))[::-1]
        kind, begin = self._number("I"), self._number("Q")
        if not all(1 <= length <= MAX_SIZE for length in shape) or math.prod(shape) > MAX_SIZE or begin > MAX_SIZE:
            raise _Unsound(f"tensor {name[:80]!r} has a shape or a place that is none")
        return name, (shape, kind, begin)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _LIST:
            return self._list()
        if kind not in _NUMBERS:
            raise _Unsound(f"it has a setting of the unknown type {kind}")
        return self._number(_NUMBERS[kind])

    def _list(self) -> list[Any]:
        kind, count = self._number("I"), self._number("Q")
        self._num_items += count
        if self._num_items > MAX_ITEMS:
            raise CheckpointUnsafe(f"{self._called} was not read: its header claims {self._num_items} items in lists")
        if kind == _STRING:
            return [self._text() for _ in range(count)]
        if kind not in _NUMBERS:
            # The format would allow lists of lists; nobody writes them.
            raise _Unsound(f"it has a list of the unknown type {kind}")
        letter = _NUMBERS[kind]
        return list(struct.unpack(f"<{count}{letter}", self._take(count * struct.calcsize(letter))))

    def _count(self, what: str, most: int) -> int:
        count: int = self._number("Q")
        if count > most:
            raise CheckpointUnsafe(f"{self._called} was not read: its header claims {count} {what}")
        return count

    def _text(self) -> str:
        try:
            return self._take(self._number("Q")).decode()
        except UnicodeDecodeError:
            raise _Unsound("it has a text that is not UTF-8") from None

    def _number(self, letter: str) -> Any:
        return struct.unpack(f"<{letter}", self._take(struct.calcsize(f"<{letter}")))[0]

    def _take(self, count: int) -> bytes:
        if count > self._size - self._num_read:
            raise _Unsound("it ends before its header does")
        self._num_read += count
        if self._num_read > MAX_HEADER_BYTES:
            raise CheckpointUnsafe(f"{self._called} was not read: its header has more than {MAX_HEADER_BYTES} bytes")
        found = self._file.read(count)
        if len(found) != count:
            raise _Unsound("it ends before its header does")
        self._hash.update(found)
        return found
