"""Places where a test can make a process die, hang or fail; in ordinary life they do nothing.

`RATCHET_FAILPOINT` holds `site:action`, or several of them with `;` between. An action is

    kill            the process ends itself with SIGKILL
    exit=3          … at once, with that status
    sleep=0.5       it waits so many seconds
    error=ENOSPC    it raises the OSError of that name

and `action@3` is taken the third time the process comes by, `action@3+` from the third time on. With
`RATCHET_FAILPOINT_ONCE` naming a folder, each site acts once among all processes that share the folder, so that a retry
gets through.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections import Counter
from pathlib import Path

VARIABLE = "RATCHET_FAILPOINT"
ONCE_VARIABLE = "RATCHET_FAILPOINT_ONCE"

_visits: Counter[str] = Counter()


def failpoint(site: str) -> None:
    """Do what the environment says for this site, which is nothing unless a test is running.

    Raises:
        OSError: that was the action.
    """
    told = os.environ.get(VARIABLE)
    if not told:
        return
    for entry in told.split(";"):
        name, _, action = entry.partition(":")
        if name == site:
            _visit(site, action)


def _visit(site: str, action: str) -> None:
    what, _, turn = action.partition("@")
    _visits[site] += 1
    first = int(turn.rstrip("+") or 1)
    is_due = _visits[site] == first or (_visits[site] > first and (turn.endswith("+") or not turn))
    if is_due and _first_of_all(site):
        _act(what)


def _first_of_all(site: str) -> bool:
    folder = os.environ.get(ONCE_VARIABLE)
    if not folder:
        return True
    try:
        (Path(folder) / site).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _act(what: str) -> None:
    verb, _, amount = what.partition("=")
    match verb:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(int(amount))
        case "sleep":
            time.sleep(float(amount))
        case "error":
            code = getattr(errno, amount)
            raise OSError(code, os.strerror(code))
        case _:
            raise ValueError(f"{VARIABLE}: no such action: {what!r}")
