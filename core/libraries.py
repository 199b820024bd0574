"""Large libraries that bring others along, imported without those."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from core.errors import ConfigError

_ONE_AT_A_TIME = threading.RLock()


def import_peft() -> Any:
    """peft, which would import bitsandbytes wherever that is installed: two seconds of every run with adapters.

    It is told for good that there is none. Layers in 4 bits are our own, and peft takes them for linear ones.
    """
    with _ONE_AT_A_TIME:
        if "peft" not in sys.modules:
            with _hidden("bitsandbytes"):
                import peft.import_utils
                import peft.tuners.lora

                peft.import_utils.is_bnb_available()
                peft.import_utils.is_bnb_4bit_available()
        import peft

        return peft


def import_bitsandbytes(field: str, setting: str, instead: str) -> Any:
    """bitsandbytes, which would fetch kernels from the hub, and run them, wherever the package `kernels` is installed.

    Args:
        field: Of the configuration, that asks for it.
        setting: What it says.
        instead: What to say to do without.

    Raises:
        ConfigError: it is not installed.
    """
    with _ONE_AT_A_TIME:
        if sys.modules.get("bitsandbytes.optim"):
            return sys.modules["bitsandbytes"]
        try:
            with _hidden("kernels"), _quiet("bitsandbytes.backends.cpu.ops"):
                import bitsandbytes.optim
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("bitsandbytes"):
                # It is there, and lacks something: to install it again would not help.
                raise
            needed = f"'{setting}' needs the package bitsandbytes"
            raise ConfigError([(field, f"{needed}: pip install 'ratchet[bitsandbytes]', or use '{instead}'")]) from None
        return bitsandbytes


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Inside it, a library looks as if it were not installed."""
    missing = object()
    before: Any = sys.modules.get(name, missing)
    sys.modules[name] = None  # type: ignore[assignment]  # which is how Python says so
    try:
        yield
    finally:
        if before is missing:
            del sys.modules[name]
        else:
            sys.modules[name] = before


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What a library logs of the other that it missed is nothing for a user to act on."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)
