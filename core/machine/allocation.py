"""How the C library hands out memory to a process that trains."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""As `malloc.h` numbers them."""


def keep_freed_memory() -> None:
    """Let this process keep what it has freed, and use it again.

    The GNU C library maps what is large anew each time and gives it back at once, so each step would wait for the
    kernel to fill hundreds of megabytes with zeros: a fifth of a step of GPT-2 on two cores. What is kept is given back
    when the process ends. Elsewhere nothing is done.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)  # Never.
