"""Trackers: a run's numbers also go to TensorBoard, MLflow, Weights & Biases or trackio, if its configuration says so.

Each tracker has a process of its own (`tracker_process`), fed by a thread from a bounded queue. Their libraries
import for seconds, talk to networks, print, register things for the exit, and draw from Python's generators when they
try again: in a thread of the training process the loop would share all of that with them, and a guard that put
generators back would take back the loop's own draws. So whatever a tracker does, the loop pays for one append to a
queue, and what a run learns is the same to the last bit.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from core.config import TrainingConfig
from core.events import Emit, Eval, Event, Sample, Started, Step, Warned, to_json

TOLD = (Step, Eval, Sample)
QUEUE_EVENTS = 10_000
"""Those that a tracker has not taken yet; of more, the oldest are dropped. At most a few MB, but for long samples."""
AT_ONCE = 100
CLOSE_SECONDS = 5.0
CHECKPOINTS_FILE = "checkpoints.txt"

_ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def tracked(emit: Emit, config: TrainingConfig, *, run_name: str, folder: Path) -> Iterator[Emit]:
    """An `Emit` that passes every event on, and then tells the trackers; closing them takes at most `CLOSE_SECONDS`.

    Nothing that a tracker does is raised here: it becomes a `Warned`, once, with the next event or at the end.

    Args:
        emit: Where events go first, and warnings about trackers.
        run_name: Who the run is, for the trackers: what has the same name goes on in the same tracker run.
        folder: TensorBoard's files are written below it, in a folder of the run's name; the other trackers are told by
            variables of their own where to go.
    """
    if not config.trackers:
        yield emit
        return
    tracking = _Tracking(emit, config, run_name, folder)
    try:
        yield tracking.emit
    except BaseException:
        tracking.close(failed=True)
        raise
    tracking.close(failed=False)


def name_of_run(folder: Path, base: str, checkpoint: str | None) -> str:
    """What a script's run is called: as the one whose last checkpoint it goes on from, if that one was tracked.

    One that goes on from an earlier checkpoint is told apart: it may learn something else from there.

    Args:
        base: What the name begins with; a new one gets a few characters more that no other has.
        checkpoint: Id of the checkpoint that the run goes on from.
    """
    with suppress(OSError):
        for file in sorted(folder.glob(f"*/{CHECKPOINTS_FILE}")) if checkpoint else []:
            if file.read_text(errors="replace").split()[-1:] == [checkpoint]:
                return file.parent.name
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', base)[:100]}_{secrets.token_hex(4)}"


def remember_checkpoint(folder: Path, run_name: str, checkpoint: str) -> None:
    """Note that a script's run has made a checkpoint, for `name_of_run`."""
    with suppress(OSError):
        (folder / run_name).mkdir(parents=True, exist_ok=True)
        with (folder / run_name / CHECKPOINTS_FILE).open("a") as file:
            file.write(f"{checkpoint}\n")


class _Tracking:
    """All trackers of one run, from the side of the training thread."""

    def __init__(self, emit: Emit, config: TrainingConfig, run_name: str, folder: Path) -> None:
        self._emit = emit
        self._names = tuple(dict.fromkeys(config.trackers))
        self._run = {"run": run_name, "folder": str(folder.absolute()), "config": config.model_dump(mode="json")}
        self._outlets: list[_Outlet] = []

    def emit(self, event: Event) -> None:
        """Pass an event on, say what went wrong meanwhile, and tell the trackers."""
        self._emit(event)
        self._warn()
        if isinstance(event, Started):
            # A run that does not come to its first step leaves nothing in any tracker.
            self._outlets = [_Outlet(name, {**self._run, "start_step": event.start_step}) for name in self._names]
        if isinstance(event, TOLD):
            now = time.time()
            for outlet in self._outlets:
                outlet.tell(event, now)

    def close(self, *, failed: bool) -> None:
        """Let the trackers finish, all at once."""
        for outlet in self._outlets:
            outlet.finish(failed=failed)
        deadline = time.monotonic() + CLOSE_SECONDS
        for outlet in self._outlets:
            outlet.wait_until(deadline)
        self._warn()

    def _warn(self) -> None:
        for outlet in self._outlets:
            while outlet.warnings:
                self._emit(Warned(outlet.warnings.popleft()))


class _Outlet:
    """One tracker: what it is still to be told, and the thread that tells its process."""

    def __init__(self, name: str, header: dict[str, Any]) -> None:
        self.warnings: deque[str] = deque()
        self._name = name
        self._header = header
        self._waiting: deque[tuple[Event, float]] = deque()
        self._more = threading.Condition()
        self._num_dropped = 0
        self._ending: dict[str, Any] | None = None
        self._is_off = False
        self._is_left = False
        self._process: subprocess.Popen[str] | None = None
        self._thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # What Python makes of the kernel's refusal.
            self._turn_off(str(error))

    def tell(self, event: Event, moment: float) -> None:
        """Put an event in line, in place of the oldest one if there are too many.

        Args:
            moment: When it was said, in seconds since the epoch.
        """
        if self._is_off:
            return
        with self._more:
            if len(self._waiting) >= QUEUE_EVENTS:
                self._waiting.popleft()
                self._num_dropped += 1
            self._waiting.append((event, moment))
            self._more.notify()

    def finish(self, *, failed: bool) -> None:
        """Nothing more will come."""
        with self._more:
            self._ending = {"kind": "close", "failed": failed}
            self._more.notify()

    def wait_until(self, deadline: float) -> None:
        """Wait for it to end, and end it if it does not; `deadline` is of the monotonic clock."""
        if self._thread.is_alive():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._is_left = True
            self.warnings.append(
                f"{self._name} did not finish within {CLOSE_SECONDS:g} s and was left; it may lack the run's last "
                "numbers"
            )
            if self._process:
                self._process.kill()
        if self._num_dropped and not self._is_off:
            self.warnings.append(
                f"{self._name} could not keep up with the run: it was not told {self._num_dropped} events"
            )

    def _run(self) -> None:
        try:
            self._process = process = self._start()
        except OSError as error:
            self._turn_off(error.strerror or str(error))
            return
        assert process.stdin
        assert process.stdout
        with suppress(OSError):
            self._feed(process.stdin)
        with suppress(OSError):
            process.stdin.close()
        with process.stdout:
            said = process.stdout.read().splitlines()
        status = process.wait()
        if self._is_left:
            return
        if status:
            self._turn_off(said.pop() if said else f"its process ended with status {status}")
        self.warnings.extend(said)

    def _start(self) -> subprocess.Popen[str]:
        places = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        return subprocess.Popen(
            # Not from the current folder: trackers make some of their names there, such as `wandb`.
            [sys.executable, "-P", "-m", "core.monitoring.tracker_process", self._name, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        )

    def _feed(self, pipe: IO[str]) -> None:
        """Write what there is to tell, a line of JSON each; it fails when nobody is there to read."""
        pipe.write(json.dumps({"kind": "open", **self._header}) + "\n")
        pipe.flush()
        while events := self._take():
            pipe.writelines(
                to_json({"kind": event.kind, "time": moment, **event.data()}) + "\n" for event, moment in events
            )
            pipe.flush()
        pipe.write(json.dumps(self._ending) + "\n")
        pipe.flush()

    def _take(self) -> list[tuple[Event, float]]:
        """The next of those in line, once there are any; none when all have been taken and nothing more will come."""
        with self._more:
            self._more.wait_for(lambda: self._waiting or self._ending)
            return [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]

    def _turn_off(self, reason: str) -> None:
        self._is_off = True
        self.warnings.append(f"{self._name} is off for the rest of this run: {reason}")
        with self._more:
            self._waiting.clear()
