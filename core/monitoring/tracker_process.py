"""The process that speaks to one tracker; `core.monitoring.trackers` starts and feeds it.

Standard input has lines of JSON: who the run is, its events, and how it ended. On standard output it says in sentences
what went wrong; if its status is not 0, the last of them is why it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from core.machine.processes import exit_with_parent
from core.monitoring.tracker_libraries import LIBRARIES, Library, Point

READ_BYTES = 1 << 14
LEAVE_SECONDS = 10
"""For so long it may go on once there is nothing more to read, if nobody ends it before."""
NICENESS = 10
REASON_CHARACTERS = 300


def main() -> None:
    """Serve the tracker that the command line names until there is nothing more to say; the process ends here."""
    name, parent = sys.argv[1:]
    exit_with_parent(signal.SIGKILL, parent=int(parent))
    # Ctrl-C in a terminal reaches every process there; the run decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    said, answers = _take_the_pipes()
    conversation = Conversation(name, answers)
    try:
        conversation.hold(said)
        status = 0
    except Exception as error:  # The edge of the process: whatever it is, only this tracker has it.
        conversation.say(reason_of(name, error))
        status = 1
    # Not by `sys.exit`: what libraries have registered for the exit may wait for a network.
    os._exit(status)


def _take_the_pipes() -> tuple[int, int]:
    """The two pipes, for this module alone: libraries read and print where nothing is."""
    pipes = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    return pipes


def reason_of(name: str, error: Exception) -> str:
    """One line about an error."""
    if isinstance(error, ImportError):
        return f"it cannot be imported ({error}): pip install 'ratchet[{name}]'"
    # The first line is what it is about; some libraries say a page.
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:REASON_CHARACTERS]}"


@dataclass
class Conversation:
    """What the run says, made into what the tracker's library takes."""

    name: str
    answers: int
    _library: Library | None = None
    _num_samples: Counter[int] = field(default_factory=Counter)
    _takes_samples: bool = True

    def hold(self, said: int) -> None:
        """Take in all that is said, as much at once as is there, until the end of it."""
        rest = b""
        while chunk := os.read(said, READ_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            self._take([json.loads(line) for line in lines])
        # Whoever was to say how it ended is gone.
        self._close(failed=True)

    def say(self, sentence: str) -> None:
        """Tell the run; it may be gone."""
        try:
            os.write(self.answers, f"{sentence}\n".encode())
        except OSError:
            return

    def _take(self, messages: list[dict[str, Any]]) -> None:
        """Pass messages on, in order, and numbers that follow one another together."""
        points: list[Point] = []
        for message in messages:
            kind = message.pop("kind")
            if kind in ("step", "eval"):
                points.append(_point(message))
                continue
            self._write(points)
            points = []
            match kind:
                case "open":
                    self._library = LIBRARIES[self.name](**message)
                case "sample":
                    self._write_sample(**message)
                case "close":
                    self._close(**message)
        self._write(points)

    def _write(self, points: list[Point]) -> None:
        if points and self._library:
            self._library.write(points)

    def _write_sample(self, step: int, time: float, prompt: str, text: str) -> None:
        """Numbers matter more than samples: where these are refused, the numbers go on."""
        if not self._takes_samples or not self._library:
            return
        self._num_samples[step] += 1
        try:
            self._library.write_sample(step, time, f"sample_{self._num_samples[step]}", prompt + text)
        except Exception as error:  # As in `main`.
            self._takes_samples = False
            self.say(f"{self.name} takes no samples: {reason_of(self.name, error)}")

    def _close(self, *, failed: bool) -> None:
        signal.alarm(LEAVE_SECONDS)
        library, self._library = self._library, None
        if library:
            library.close(failed=failed)


def _point(message: dict[str, Any]) -> Point:
    step, moment = message.pop("step"), message.pop("time")
    return Point(step, moment, {name: value for name, value in message.items() if value is not None})


if __name__ == "__main__":
    main()
