"""Why a training process that said nothing is gone."""

from __future__ import annotations

import signal
from pathlib import Path

from jobs.lease import Failed

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


class OutOfMemoryKills:
    """Whether the kernel has killed a process of this worker's control group for want of memory, since this was made.

    It counts them, for any reason and at any level, in version 2 of control groups alone. A child starts in its
    worker's group, so another child killed in the same moments is not told apart.
    """

    def __init__(self) -> None:
        self._before = _counted()

    def any(self) -> bool | None:
        """None where the kernel does not say."""
        now = _counted()
        return None if now is None or self._before is None else now > self._before


def cause_of(exit_code: int, ran_out_of_memory: bool | None) -> Failed:
    """What to tell of a process with this exit status.

    Args:
        ran_out_of_memory: See `OutOfMemoryKills.any`.
    """
    if exit_code == -signal.SIGKILL:
        return _killed(ran_out_of_memory)
    if exit_code < 0:
        return Failed("signal", f"The training process was ended by {_name_of(-exit_code)}.")
    return Failed("exited", f"The training process ended with exit code {exit_code} and said nothing.")


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # Python has no names for the real-time signals between the first and the last.
        return f"signal {number}"


def _killed(ran_out_of_memory: bool | None) -> Failed:
    if ran_out_of_memory:
        said = "The machine ran out of memory, and the kernel killed the training process"
        return Failed("out_of_memory_host", f"{said}; a smaller batch_size or block_size needs less.")
    if ran_out_of_memory is None:
        said = "The training process was killed, most likely because the machine ran out of memory."
        return Failed("killed", said)
    return Failed("killed", "The training process was killed from outside (SIGKILL), not for want of memory.")


def _counted() -> int | None:
    try:
        group = next(line[3:] for line in OWN_CGROUP.read_text().splitlines() if line.startswith("0::"))
        events = (CGROUPS / group.lstrip("/") / "memory.events").read_text()
        return next(int(line.split()[1]) for line in events.splitlines() if line.startswith("oom_kill "))
    except (OSError, ValueError, StopIteration):
        return None
