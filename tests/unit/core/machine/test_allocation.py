from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

AGAIN = """
import resource, sys
from core.machine.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
blocks = [bytearray(64 << 20) for _ in range(2)]
del blocks
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    block = bytearray(b"x") * (64 << 20)
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def num_faults(which: str) -> int:
    """Pages that the kernel had to find for memory that had been there before."""
    done = subprocess.run([sys.executable, "-c", AGAIN, which], cwd=PROJECT, check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no such settings")
def test_memory_that_was_freed_is_used_again_without_asking_the_kernel() -> None:
    # 64 MiB are 16,384 pages.
    assert num_faults("kept") < 1000 < 16_000 < num_faults("plain")
