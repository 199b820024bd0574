"""Safetensors files, looked through before the library opens them: what a header says has to be true of its file.

A file is the length of its header (8 bytes, little-endian), the header (JSON), and the tensors' bytes. The header has
for each name `dtype`, `shape` and `data_offsets`; in order of their offsets the tensors fill the rest of the file
exactly. Nothing but the header is read here. Light: no more than the standard library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from core.errors import CheckpointCorrupt, CheckpointUnsafe
from core.machine.outside import open_plain

MAX_HEADER_BYTES = 4 << 20
"""Twenty-five thousand tensors at 160 bytes each: large models are published in files of a few thousand. The most
wasteful JSON of this length is parsed in less than 256 MiB; of the 100 MB that the library allows, it would be 4 GB."""

MAX_DIMENSIONS = 64
MAX_SIZE = 2**63 - 1

BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16},
    **{"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64},
    **{"F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8},
    **{"F6_E2M3": 6, "F6_E3M2": 6, "F4": 4},
}
"""Bits of one element, by the format's name for its type."""

Pairs = tuple[tuple[str, Any], ...]
"""An object of the header: compact, and with the repeats that a dict would hide."""


class _Unsound(Exception):
    """What is wrong with a header."""


def check_tensor_file(path: Path, *, is_link_allowed: bool = False) -> None:
    """Look through the header of a safetensors file.

    Raises:
        CheckpointCorrupt: it is not there, is cut short, or its header is not true of it.
        CheckpointUnsafe: it is a link or no regular file, or its header is longer than any that is needed.
    """
    called = f"'{path.parent.name}/{path.name}'"
    with open_plain(path, is_link_allowed=is_link_allowed) as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = _header_length(file.read(8))
        if length > MAX_HEADER_BYTES:
            raise CheckpointUnsafe(f"{called} was not opened: its header claims {length} bytes")
        try:
            if length > size - 8:
                raise _Unsound(f"it ends before its header does, which has {length} bytes")
            _check_fill([_range(*pair) for pair in _entries(file.read(length))], size - 8 - length)
        except _Unsound as error:
            raise CheckpointCorrupt(f"{called} is no valid safetensors file: {error}") from None


def _header_length(first: bytes) -> int:
    return int(struct.unpack("<Q", first)[0]) if len(first) == 8 else 0


def _entries(text: bytes) -> Iterable[tuple[str, Any]]:
    """Name and description of each tensor."""
    if not text.startswith(b"{"):
        raise _Unsound("it does not begin with a header")
    try:
        header = json.loads(text, object_pairs_hook=_pairs, parse_float=_no_number, parse_constant=_no_number)
    except (ValueError, RecursionError):
        # Python's parser goes as deep as its stack may, and no header needs more than three levels.
        raise _Unsound("its header is no JSON that a header can be") from None
    metadata = dict(header).get("__metadata__", ())
    if not isinstance(metadata, tuple) or not all(isinstance(value, str) for _, value in metadata):
        raise _Unsound("its metadata are not texts")
    return (pair for pair in header if pair[0] != "__metadata__")


def _pairs(found: list[tuple[str, Any]]) -> Pairs:
    if len({name for name, _ in found}) < len(found):
        raise _Unsound("its header has a name twice")
    return tuple(found)


def _no_number(said: str) -> NoReturn:
    raise _Unsound(f"its header has the number {said[:20]}")


def _range(name: str, entry: Any) -> tuple[int, int]:
    """Where a tensor's bytes begin and end."""
    shown = repr(name[:80])
    said = dict(entry) if isinstance(entry, tuple) else {}
    if said.keys() != {"dtype", "shape", "data_offsets"}:
        raise _Unsound(f"tensor {shown} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = said["dtype"], said["shape"], said["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _Unsound(f"tensor {shown} is of an unknown type")
    if not _are_sizes(shape, MAX_DIMENSIONS) or not _are_sizes(offsets, 2) or len(offsets) != 2:
        raise _Unsound(f"tensor {shown} has a shape or a place that is none")
    begin, end = offsets
    if _num_bits(shape, BITS[dtype]) != 8 * (end - begin):
        raise _Unsound(f"tensor {shown} has a place of another size than its shape")
    return begin, end


def _are_sizes(found: Any, most: int) -> bool:
    return (
        isinstance(found, list)
        and len(found) <= most
        and all(type(size) is int and 0 <= size <= MAX_SIZE for size in found)
    )


def _num_bits(shape: list[int], num_bits: int) -> int | None:
    """Bits of all elements; None if they are more than can be counted."""
    for size in shape:
        num_bits *= size
        if num_bits > MAX_SIZE:
            return None
    return num_bits


def _check_fill(ranges: list[tuple[int, int]], num_bytes: int) -> None:
    """The tensors follow one another, without a hole or an overlap, up to the end of the file."""
    reached = 0
    for begin, end in sorted(ranges):
        if begin != reached:
            raise _Unsound(f"its tensors {'overlap' if begin < reached else 'leave a hole'} at byte {begin}")
        reached = end
    if reached != num_bytes:
        raise _Unsound(f"its tensors have {reached} bytes, and {num_bytes} are there")
