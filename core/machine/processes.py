"""Small facts of operating systems that several rooms need."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1

EXIT_WITH_PARENT = "RATCHET_EXIT_WITH_PARENT"

POLITE = {"GOMP_SPINCOUNT": "1000"}
"""Environment of a process that computes beside others, to be set before it loads torch.

OpenMP's threads wait for each other by spinning, 300,000 turns as GNU's library comes. When something else wants one of
the cores, such as this product's own service and generation, the thread that is waited for does not get to run. A
thousand turns keep nearly all the speed of an idle machine and most of it on a busy one; see docs/log.md.
"""


def exit_with_parent(sign: int = signal.SIGTERM, *, parent: int | None = None) -> None:
    """Ask the kernel to send this process a signal when its parent dies, however it dies.

    Linux only; elsewhere a process whose parent is killed with SIGKILL has to notice by itself. The kernel watches the
    parent's *thread* that made this process, so it must be one that lives as long as the parent does.

    Args:
        sign: The signal.
        parent: The process id that the parent should have; if it is gone already, the signal comes at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sign)
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), sign)


def exit_with_parent_if_told() -> None:
    """As `exit_with_parent`, for a process that `ratchet up` started: it says so by `RATCHET_EXIT_WITH_PARENT`."""
    if os.environ.get(EXIT_WITH_PARENT):
        exit_with_parent(signal.SIGTERM)


def wait_politely() -> None:
    """Apply `POLITE` to this process, unless its user decided otherwise."""
    for name, value in POLITE.items():
        os.environ.setdefault(name, value)


@contextmanager
def importing() -> Iterator[None]:
    """Around imports of large libraries, in a process of one's own: what they make stays, and is no garbage.

    Torch makes half a million objects. Going through them takes a fifth of the time of its import, and as long again
    when the process ends.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
