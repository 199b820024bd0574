"""`python -m service`: the service in the foreground; SIGTERM or Ctrl-C ends it, with a farewell to every stream."""

from __future__ import annotations

import logging
import signal
import sys

from pydantic import ValidationError

from core.config import problems_of
from core.errors import RatchetError
from core.machine.processes import exit_with_parent_if_told
from jobs.database import Database
from service.app import create_app
from service.server import Server, listen, prepare_for_crowds
from service.settings import ServiceSettings

UNUSABLE = 2


def main() -> int:
    """Answer until a signal comes.

    Returns:
        The exit status: 0 after a signal, 2 if the settings, the ledger or the port cannot be used.
    """
    exit_with_parent_if_told()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s service %(levelname)s %(message)s")
    for chatty in ("alembic", "httpx2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        settings = ServiceSettings()
        _check_ledger(settings)
        listening = listen(settings)
    except ValidationError as error:
        return _unusable(
            "; ".join(f"RATCHET_{name.upper()}: {said}" if name else said for name, said in problems_of(error))
        )
    except RatchetError as error:
        return _unusable(error.message)
    except OSError as error:
        return _unusable(f"Cannot listen on {settings.host} port {settings.port}: {error.strerror or error}.")
    server = Server(create_app(settings), settings)
    prepare_for_crowds(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn sets the same while it serves, and raises the signal again when it is done.
        signal.signal(number, server.handle_exit)
    server.run(sockets=[listening])
    return 0


def _check_ledger(settings: ServiceSettings) -> None:
    """The application does so too when it starts, but uvicorn would bury the sentence in a traceback."""
    ledger = Database(settings.database_url)
    try:
        ledger.migrate()
    finally:
        ledger.close()


def _unusable(sentence: str) -> int:
    sys.stderr.write(f"{sentence}\n")
    return UNUSABLE


if __name__ == "__main__":
    sys.exit(main())
