"""`python -m worker`: a worker in the foreground; SIGTERM or Ctrl-C drains it."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Callable

from pydantic import ValidationError

from core.config import problems_of
from core.errors import RatchetError
from core.machine.processes import exit_with_parent_if_told
from worker.loop import WorkerLoop
from worker.settings import WorkerSettings
from worker.stop import StopSign

LEAVE_SECONDS = 4


def main() -> int:
    """Work until a signal comes.

    Returns:
        The exit status: 0 after a drain, 2 if the settings or the ledger cannot be used.
    """
    exit_with_parent_if_told()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s worker %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = WorkerSettings()
        WorkerLoop(settings, stop_at_signals(settings.drain_seconds)).run()
    except ValidationError as error:
        for field, said in problems_of(error):
            sys.stderr.write(f"RATCHET_{field.upper()}: {said}\n")
        return 2
    except RatchetError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


def stop_at_signals(drain_seconds: float) -> StopSign:
    """A sign that SIGTERM and Ctrl-C raise; who has not left a few seconds after the drain is ended by the kernel.

    That takes generation and all children along, and needs no thread of a worker that waits for its ledger. Nor does
    the sign itself: Python runs a handler in the main thread alone, once that has come back from the database, so a
    thread of its own is told by the kernel's handler at the moment of the signal.
    """
    stop = StopSign()

    def ask(*_: object) -> None:
        if not stop.is_set():
            stop.set()
            signal.alarm(math.ceil(drain_seconds) + LEAVE_SECONDS)

    told, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, ask)
    threading.Thread(target=_ask_when_told, args=[told, ask], daemon=True, name="signals").start()
    return stop


def _ask_when_told(told: int, ask: Callable[[], None]) -> None:
    # Each byte is the number of a signal that has a handler in Python, and only those two have.
    while os.read(told, 1):
        ask()


if __name__ == "__main__":
    sys.exit(main())
