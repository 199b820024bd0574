"""Which device a run gets."""

from __future__ import annotations

import torch

from core.errors import DeviceUnavailable, OutOfMemory

_ALLOCATORS_SAY = ("can't allocate memory", "not enough memory", "out of memory")


def as_out_of_memory(error: BaseException) -> OutOfMemory | None:
    """The error to tell a user if `error` means that memory ran out; torch's CPU allocator has no type for it."""
    said = str(error)
    if not isinstance(error, MemoryError | torch.OutOfMemoryError) and not (
        isinstance(error, RuntimeError) and any(words in said for words in _ALLOCATORS_SAY)
    ):
        return None
    return OutOfMemory("memory ran out while training; a smaller batch_size or block_size needs less")


def select_device(wanted: str = "auto") -> str:
    """The device of that name; `auto` is the first of cuda, mps, cpu that is here.

    Raises:
        DeviceUnavailable: it is not on this machine.
    """
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, present in here.items() if present)
    kind, _, number = wanted.partition(":")
    if not here.get(kind, False) or (number and int(number) >= torch.cuda.device_count()):
        names = ", ".join(name for name, present in here.items() if present)
        raise DeviceUnavailable(f"device '{wanted}' is not on this machine; here are: {names}", field="device")
    return wanted
