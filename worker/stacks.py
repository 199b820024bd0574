"""Where a hung process stands, for a person to read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from jobs.settings import PROJECT

_FRAME = re.compile(r'^\s*File "(?P<path>.*)", (?P<place>line .*)$')
_ABOVE = re.compile(r"^.*/(?:site-packages|dist-packages|lib/python3\.\d+)/")


def readable(dump: Iterable[str]) -> Iterator[str]:
    """The lines of a `faulthandler` dump without this machine's folders and addresses."""
    num_threads = 0
    for line in dump:
        frame = _FRAME.match(line)
        if frame:
            yield f"  {_within(frame['path'])}, {frame['place']}"
        elif "most recent call first" in line:
            num_threads += 1
            yield f"thread {num_threads}, most recent call first:"


def _within(path: str) -> str:
    """A module's path from the folder that it is imported from; its bare name if that is unknown."""
    installed = _ABOVE.sub("", path)
    if installed != path:
        return installed
    own = path.removeprefix(f"{PROJECT}/")
    return own if own != path else path.rpartition("/")[2]
