from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.checkpoints.tensor_files import BITS, MAX_HEADER_BYTES, check_tensor_file
from core.errors import CheckpointCorrupt, CheckpointUnsafe
from tests.conftest import PROJECT

MAX_MIB = 256

Header = dict[str, Any]


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "F32") -> Header:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def written(header: Header | bytes, num_bytes: int = 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(num_bytes)


def wasteful(unit: bytes, ending: bytes = b"0]}") -> bytes:
    """The longest header that is parsed at all, made of one thing over and over."""
    return b'{"a":[' + unit * ((MAX_HEADER_BYTES - 20) // len(unit)) + ending


SOUND: dict[str, bytes] = {
    "two": written({"a": entry(0, 8), "b": entry(8, 16), "__metadata__": {"format": "pt"}}),
    "names in another order than their bytes": written({"b": entry(8, 16), "a": entry(0, 8)}),
    "none": written({}, 0),
    "an empty one": written({"a": entry(0, 16), "none": entry(16, 16, [3, 0])}),
    "a number": written({"a": entry(0, 4, [])}, 4),
    "padded": written(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}     '),
    "half bytes": written({"a": entry(0, 2, [4], "F4")}, 2),
}

HOSTILE: dict[str, bytes] = {
    "nothing": b"",
    "half a length": b"\x01\x00",
    "no header": struct.pack("<Q", 0) + bytes(16),
    "huge length": written({"a": entry(0, 16)}, length=2**64 - 1),
    "length beyond the file": written({"a": entry(0, 16)}, length=1000),
    "no json": written(b"{" + b"\xff" * 30),
    "no object": written(b'["a"]'),
    "spaces first": written(b"   {}", 0),
    "words behind": written(b"{} {}", 0),
    "not utf-8": written(b'{"\xff": 1}'),
    "half a surrogate": written(b'{"\\ud800": {"dtype": "F32"}}'),
    "not a number": written(b'{"a": NaN}'),
    "endless digits": written(b'{"a": ' + b"9" * 100_000 + b"}"),
    "deep lists": written(b'{"a":' + b"[" * 100_000),
    "deep objects": written(b'{"a":' * 100_000),
    "a name twice": written(
        b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    ),
    "a field twice": written(b'{"a":{"dtype":"F32","shape":[4],"shape":[4],"data_offsets":[0,16]}}'),
    "a field too many": written({"a": {**entry(0, 16), "more": 1}}),
    "a field too few": written({"a": {"dtype": "F32", "shape": [4]}}),
    "a list for a tensor": written({"a": [1, 2]}),
    "metadata of numbers": written({"a": entry(0, 16), "__metadata__": {"a": 1}}),
    "metadata of text": written({"a": entry(0, 16), "__metadata__": "pt"}),
    "overlap": written({"a": entry(0, 12), "b": entry(8, 16)}),
    "the same place": written({"a": entry(0, 16), "b": entry(0, 16)}),
    "hole": written({"a": entry(0, 4), "b": entry(8, 16)}),
    "does not begin at 0": written({"a": entry(4, 16)}),
    "backwards": written({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}),
    "beyond the end": written({"a": entry(0, 64)}),
    "bytes behind": written({"a": entry(0, 8)}),
    "cut short": written({"a": entry(0, 16)})[:-1],
    "shape of another size": written({"a": entry(0, 16, [5])}),
    "overflow": written({"a": entry(0, 16, [2**33, 2**33])}),
    "overflow to the right size": written({"a": entry(0, 16, [2**62, 2**62, 4])}),
    "overflow and nothing": written({"a": entry(0, 0, [2**62, 2**62, 0])}, 0),
    "many dimensions": written({"a": entry(0, 16, [1] * 65 + [4])}),
    "endless dimensions": written({"a": entry(0, 16, [2**62] * 100_000)}),
    "negative shape": written({"a": entry(0, 16, [-4])}),
    "two negatives": written({"a": entry(0, 16, [-2, -2])}),
    "shape of floats": written({"a": entry(0, 16, [4.0])}),
    "shape of truths": written({"a": entry(0, 4, [True])}, 4),
    "shape of texts": written({"a": entry(0, 16, ["4"])}),
    "negative place": written({"a": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}),
    "three places": written({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16, 16]}}),
    "no such type": written({"a": entry(0, 16, dtype="F33")}),
    "type of list": written({"a": entry(0, 16, dtype=["F32"])}),
    "half a byte": written({"a": entry(0, 2, [3], "F4")}, 2),
    "empty lists": written(wasteful(b"[],")),
    "empty objects": written(wasteful(b"{},")),
    "small objects": written(wasteful(b'{"":0},')),
    "wider objects": written(wasteful(b'{"a":0,"b":0},')),
    "small texts": written(wasteful(b'"ab",')),
    "small numbers": written(wasteful(b"-9,")),
    "lists in lists": written(wasteful(b"[[]],")),
    "many names": written(b"{" + b",".join(b'"%x":0' % i for i in range(400_000)) + b"}"),
    "wide characters": written(wasteful(b"[],", '"\U0001f40d"]}'.encode())),
}


def write(folder: Path, content: bytes) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", list(SOUND))
def test_what_the_format_allows_is_let_through(tmp_path: Path, name: str) -> None:
    check_tensor_file(write(tmp_path, SOUND[name]))


def test_every_type_that_is_written_is_known(tmp_path: Path) -> None:
    """The sizes are the library's own."""
    path = tmp_path / "model.safetensors"
    kinds = ["bool", "uint8", "int8", "int16", "uint16", "float16", "bfloat16", "int32", "float32", "int64", "float64"]
    kinds += ["uint32", "uint64", "complex64", "float8_e4m3fn", "float8_e5m2"]
    save_file({kind: torch.zeros(3, 5).to(getattr(torch, kind)) for kind in kinds}, path)
    check_tensor_file(path)
    assert {"F32", "BF16", "BOOL"} <= BITS.keys()


CHILD = """
import re, resource, sys
from pathlib import Path
from core.errors import CheckpointError
from core.checkpoints.tensor_files import check_tensor_file

bare = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (bare + {mib} * 2**20,) * 2)

def peak_kib():
    # Not ru_maxrss, which a process inherits from the one that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

before = peak_kib()
for number in range(int(sys.argv[1])):
    try:
        check_tensor_file(Path(str(number), "model.safetensors"))
        print("let through")
    except CheckpointError as error:
        print(error.code, error.message)
    except BaseException as error:
        print(repr(error)[:200])
print((peak_kib() - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is read and limited as Linux has it")
def test_every_hostile_file_is_refused_in_a_sentence_and_in_little_memory(tmp_path: Path) -> None:
    # The library itself would take the last one's header: 100 MB, all of it there.
    for number, content in enumerate([*HOSTILE.values(), struct.pack("<Q", 100_000_000)]):
        (tmp_path / str(number)).mkdir()
        path = write(tmp_path / str(number), content)
    os.truncate(path, 100_000_008)
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(mib=MAX_MIB), str(number + 1)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=True,
    )
    *said, peak_mib = child.stdout.splitlines()
    told = dict(zip([*HOSTILE, "long"], said, strict=True))
    assert {name: line for name, line in told.items() if not line.startswith("checkpoint_")} == {}
    assert all(len(line) < 250 for line in said)
    assert 0 < int(peak_mib) < MAX_MIB


def test_a_header_that_is_too_long_is_unsafe_and_one_that_is_not_true_is_corrupt(tmp_path: Path) -> None:
    with pytest.raises(CheckpointUnsafe, match="header claims 18446744073709551615 bytes"):
        check_tensor_file(write(tmp_path, HOSTILE["huge length"]))
    with pytest.raises(CheckpointCorrupt, match=r"no valid safetensors file: its tensors overlap at byte 8"):
        check_tensor_file(write(tmp_path, HOSTILE["overlap"]))


def _link(path: Path) -> None:
    (path.parent / "elsewhere").write_bytes(SOUND["two"])
    path.symlink_to(path.parent / "elsewhere")


NOT_PLAIN: dict[str, Callable[[Path], object]] = {"link": _link, "pipe": os.mkfifo, "folder": Path.mkdir}


@pytest.mark.parametrize("what", list(NOT_PLAIN))
def test_only_a_regular_file_is_opened(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.safetensors"
    NOT_PLAIN[what](path)
    with pytest.raises(CheckpointUnsafe, match="no regular file"):
        check_tensor_file(path)


def test_a_file_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointCorrupt, match=r"gone\.safetensors' cannot be read: No such file"):
        check_tensor_file(tmp_path / "gone.safetensors")
