"""The GPUs of this machine, found without torch, and the lock by which one trainer at a time has one of them."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import DeviceBusy

log = logging.getLogger(__name__)

ASK = ("nvidia-smi", "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader")
ASK_SECONDS = 20.0
DEVICES = Path("/dev")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU; `uuid` is what CUDA_VISIBLE_DEVICES takes, `memory` as the driver words it."""

    index: int
    uuid: str
    name: str
    memory: str


def find_gpus(environment: Mapping[str, str] = os.environ) -> list[Gpu] | None:
    """Those that the driver lists and CUDA_VISIBLE_DEVICES, if it is set, leaves to this process.

    None if nothing lists them and yet there seem to be some: without their names nobody can lock them.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return []
    try:
        answer = subprocess.run(ASK, capture_output=True, text=True, errors="replace", timeout=ASK_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        if not visible and not any(DEVICES.glob("nvidia[0-9]*")):
            return []
        log.warning("this machine's GPUs are hidden from all jobs, because nvidia-smi does not list them: %s", error)
        return None
    gpus = [gpu for line in answer.stdout.splitlines() if (gpu := _parsed(line))]
    return gpus if visible is None else _chosen(gpus, visible)


class GpuLock:
    """Who trains on a GPU has the lock on a file named after it, whatever ledger and whatever user it works for.

    The kernel gives the lock back when its holder dies. The file stays: removing it would let two processes lock two
    files of one name.
    """

    def __init__(self, uuid: str) -> None:
        self._path = Path(tempfile.gettempdir()) / f"ratchet-gpu-{re.sub(r'[^0-9A-Za-z-]', '_', uuid)}.lock"
        self._handle: int | None = None

    def take(self) -> bool:
        """Whether it is ours now.

        Raises:
            OSError: the file cannot be opened.
        """
        handle = self._open()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def give_back(self) -> None:
        """Let others have it; it makes no difference if it was not ours."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _open(self) -> int:
        # A lock needs no right to write. Where everyone may make files, the kernel lets nobody open another user's file
        # with O_CREAT; and a link that somebody put there leads nowhere.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        with contextlib.suppress(FileExistsError):
            handle = os.open(self._path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            os.fchmod(handle, 0o666)
            return handle
        return os.open(self._path, flags)


@contextlib.contextmanager
def free_gpu(device: str, environment: Mapping[str, str] = os.environ) -> Iterator[str | None]:
    """A GPU to try something on, had as a job has one: jobs leave it alone for that long, and it leaves theirs alone.

    Args:
        device: As in `TrainingConfig.device`.

    Yields:
        `CUDA_VISIBLE_DEVICES` of the process that tries it; None leaves it as it is.

    Raises:
        DeviceBusy: others have all there are.
    """
    gpus = [] if device == "cpu" else find_gpus(environment)
    if not gpus:
        yield "" if gpus is None or device == "cpu" else None
        return
    # Jobs take the first one that is free.
    for gpu in reversed(gpus):
        lock = GpuLock(gpu.uuid)
        with contextlib.suppress(OSError):
            if lock.take():
                break
    else:
        raise DeviceBusy(
            "each GPU of the worker trains a job now, so no step can be timed: ask again when one is free, or without "
            "time"
        )
    try:
        yield gpu.uuid
    finally:
        lock.give_back()


def _parsed(line: str) -> Gpu | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) != 4 or not parts[0].isdigit():
        return None
    return Gpu(int(parts[0]), *parts[1:])


def _chosen(gpus: list[Gpu], visible: str) -> list[Gpu]:
    """As CUDA reads it: numbers or beginnings of UUIDs, up to the first that names nothing.

    The numbers are nvidia-smi's, which are CUDA's own if CUDA_DEVICE_ORDER is PCI_BUS_ID or all GPUs are of one kind.
    """
    chosen: list[Gpu] = []
    for wanted in (part.strip() for part in visible.split(",")):
        named = [gpu for gpu in gpus if (wanted == str(gpu.index) or (wanted and gpu.uuid.startswith(wanted)))]
        if len(named) != 1:
            break
        chosen += named
    return chosen
