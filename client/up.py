"""`ratchet up`: the service and its workers as one foreground command.

The children write to this command's own stdout and stderr, so the service's ready line arrives as it was said. Each
child is in a process group of its own: a Ctrl-C at the terminal then reaches this process alone, which stops the
workers first, while the service still tells their readers how it ends. Should this process be killed, the children go
too: `RATCHET_EXIT_WITH_PARENT` tells them to ask the kernel for that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

EXIT_WITH_PARENT = "RATCHET_EXIT_WITH_PARENT"

SERVICE = (sys.executable, "-m", "service")
WORKER = (sys.executable, "-m", "worker")

_STDERR = 2


@dataclass(frozen=True, slots=True)
class Household:
    """What `up` runs, and how patient it is. Times are in seconds."""

    service: Sequence[str] = SERVICE
    worker: Sequence[str] = WORKER
    num_workers: int = 1
    environment: Mapping[str, str] = field(default_factory=dict)
    poll_seconds: float = 0.1
    first_backoff_seconds: float = 1.0
    longest_backoff_seconds: float = 30.0
    settled_seconds: float = 60.0
    """A worker that lived this long had started well, so its next restart need not wait longer than the first."""
    workers_grace_seconds: float = 15.0
    """The part of the grace that workers may use up before the service is asked as well."""
    grace_seconds: float = 25.0


class Child:
    """One process.

    Args:
        name: What to call it before a person.
        stdout: Where its standard output goes; None for this command's own.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], stdout: int | None) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._stdout = stdout
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run the command, in a process group of its own."""
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=self._stdout, process_group=0
        )

    @property
    def exit_code(self) -> int | None:
        """How it ended, as a shell counts; None while it runs and before it has."""
        code = None if self._process is None else self._process.poll()
        return 128 - code if code is not None and code < 0 else code

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ask_to_stop(self) -> None:
        """SIGTERM, if it is there."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL, if it is there; it is gone when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class WorkerPost:
    """A worker's place in the household: who dies there is replaced, after a wait that grows while they die young."""

    def __init__(self, child: Child, house: Household) -> None:
        self.child = child
        self._house = house
        self._backoff = house.first_backoff_seconds
        self._started = time.monotonic()
        self._due: float | None = None

    def fill(self) -> float | None:
        """Start the worker when it is due; the seconds until then, if its death was noticed just now."""
        now = time.monotonic()
        if self._due is not None:
            if now >= self._due:
                self._due, self._started = None, now
                self.child.start()
            return None
        if self.child.is_running:
            return None
        if now - self._started >= self._house.settled_seconds:
            self._backoff = self._house.first_backoff_seconds
        wait, self._backoff = self._backoff, min(2 * self._backoff, self._house.longest_backoff_seconds)
        self._due = now + wait
        return wait


class Up:
    """Starts the household, keeps it, and takes it down again."""

    def __init__(self, household: Household, say: Callable[[str], None]) -> None:
        self._house = household
        self._say = say
        environment = {**os.environ, **household.environment, EXIT_WITH_PARENT: "1"}
        self._service = Child("service", household.service, environment, stdout=None)
        names = [f"worker {number}" for number in range(1, household.num_workers + 1)]
        # Standard output is for the ready line; a worker has nothing to say to a program that reads it.
        self._workers = [Child(name, household.worker, environment, stdout=_STDERR) for name in names]
        self._stop_asked = False
        self._kill_asked = False
        # Another parent later on means that the one that wanted to be followed is dead.
        self._parent = os.getppid() if os.environ.get(EXIT_WITH_PARENT) else None

    def run(self) -> int:
        """Stay until a signal or the service's death; the exit code."""
        with self._signals_noted():
            try:
                for child in (self._service, *self._workers):
                    child.start()
                self._keep()
                return self._take_down()
            finally:
                self._kill_all()

    def _keep(self) -> None:
        posts = [WorkerPost(worker, self._house) for worker in self._workers]
        while not self._must_stop and self._service.is_running:
            for post in posts:
                wait = post.fill()
                if wait is not None:
                    code = post.child.exit_code
                    self._say(f"The {post.child.name} ended with exit code {code}; it starts again in {wait:g} s.")
            time.sleep(self._house.poll_seconds)

    def _take_down(self) -> int:
        """Workers first, then the service; at the end of the grace, or at a second Ctrl-C, everyone at once."""
        service_code = self._service.exit_code
        if service_code is not None:
            self._say(f"The service ended with exit code {service_code}; stopping.")
        begun = time.monotonic()
        self._ask_to_stop(self._workers)
        self._wait_for(self._workers, begun + self._house.workers_grace_seconds)
        self._ask_to_stop([self._service])
        self._wait_for([*self._workers, self._service], begun + self._house.grace_seconds)
        killed = self._kill_all()
        if killed:
            self._say(f"Killed: {', '.join(killed)}.")
        return service_code if service_code is not None else int(bool(killed))

    def _ask_to_stop(self, children: Sequence[Child]) -> None:
        for child in children:
            child.ask_to_stop()

    def _wait_for(self, children: Sequence[Child], deadline: float) -> None:
        while any(child.is_running for child in children):
            if time.monotonic() >= deadline or self._kill_asked:
                return
            time.sleep(self._house.poll_seconds)

    def _kill_all(self) -> list[str]:
        """The names of those who had to be killed."""
        left = [child for child in (*self._workers, self._service) if child.is_running]
        for child in left:
            child.kill()
        return [child.name for child in left]

    @property
    def _must_stop(self) -> bool:
        return self._stop_asked or (self._parent is not None and os.getppid() != self._parent)

    @contextmanager
    def _signals_noted(self) -> Iterator[None]:
        """A closing terminal stops the household as Ctrl-C does."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        """Only a second Ctrl-C is impatience: whoever manages processes may well send SIGTERM twice."""
        self._kill_asked |= self._stop_asked and number == signal.SIGINT
        self._stop_asked = True
