"""`python -m worker`: a worker in the foreground; SIGTERM or Ctrl-C drains it."""

from __future__ import annotations

import logging
import signal
import sys
import threading

from pydantic import ValidationError

from core.config import problems_of
from core.errors import RatchetError
from core.processes import exit_with_parent_if_told
from worker.loop import WorkerLoop
from worker.settings import WorkerSettings


def main() -> int:
    """Work until a signal comes.

    Returns:
        The exit status: 0 after a drain, 2 if the settings or the ledger cannot be used.
    """
    exit_with_parent_if_told()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s worker %(levelname)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    try:
        WorkerLoop(WorkerSettings(), stop).run()
    except ValidationError as error:
        for field, said in problems_of(error):
            sys.stderr.write(f"RATCHET_{field.upper()}: {said}\n")
        return 2
    except RatchetError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
