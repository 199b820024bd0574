"""`ratchet up`: the service and its workers as one foreground command.

The children write to this command's own stderr, and the service's ready line is passed on to its stdout as it was said,
after a look at the port: a service that dies comes back on the same one, so that its readers find it again. The
workers go on meanwhile. Each child is in a process group of its own: a Ctrl-C at the terminal then reaches this process
alone, which stops the workers first, while the service still tells their readers how it ends. Should this process be
killed, the children go too: `RATCHET_EXIT_WITH_PARENT` tells them to ask the kernel for that.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO

from core.machine.processes import EXIT_WITH_PARENT

SERVICE = (sys.executable, "-m", "service")
WORKER = (sys.executable, "-m", "worker")

_STDOUT, _STDERR = 1, 2

_READY = re.compile(rb"ready at \S+:(\d+)\s*$")

_MEANT = frozenset({0, 2})
"""Exit codes of a service that was asked to end, or that cannot run with its settings."""


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
    """A child that lived this long had started well, so its next restart need not wait longer than the first."""
    num_service_deaths: int = 3
    """A service that dies this often within `settled_seconds` is not worth another start."""
    workers_grace_seconds: float = 15.0
    """The part of the grace that workers may use up before the service is asked as well."""
    grace_seconds: float = 25.0


class Child:
    """One process.

    Args:
        name: What to call it before a person.
        stdout: Where its standard output goes.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], stdout: int) -> None:
        self.name = name
        self._command = command
        self._environment = dict(environment)
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


class Service(Child):
    """The child that others call: what it prints is passed on, and it starts again on the port that it had."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        super().__init__("service", command, environment, stdout=subprocess.PIPE)
        self._was_ready = False
        self._passing_on: threading.Thread | None = None

    def start(self) -> None:
        super().start()
        assert self._process is not None
        self._passing_on = threading.Thread(target=self._pass_on, args=[self._process.stdout], daemon=True)
        self._passing_on.start()

    @property
    def was_ready(self) -> bool:
        """Whether it has ever been up; to be asked of one that has ended."""
        self.hear_out()
        return self._was_ready

    def hear_out(self) -> None:
        """Pass on the last of what it printed."""
        if self._passing_on is not None:
            self._passing_on.join(timeout=1.0)

    def _pass_on(self, printed: IO[bytes]) -> None:
        with printed:
            for line in printed:
                ready = _READY.search(line)
                if ready is not None:
                    self._was_ready = True
                    self._environment["RATCHET_PORT"] = ready[1].decode()
                with suppress(OSError):  # Whoever read our standard output may have gone.
                    os.write(_STDOUT, line)


class Post:
    """A child's place in the household: who dies there is replaced, after a wait that grows while they die young."""

    def __init__(self, child: Child, house: Household) -> None:
        self.child = child
        self._house = house
        self._backoff = house.first_backoff_seconds
        self._started = time.monotonic()
        self._due: float | None = None
        self._deaths: list[float] = []

    @property
    def num_recent_deaths(self) -> int:
        """How many there were within `settled_seconds` of the last one."""
        return sum(self._deaths[-1] - death <= self._house.settled_seconds for death in self._deaths)

    def fill(self) -> float | None:
        """Start the child when it is due; the seconds until then, if its death was noticed just now."""
        now = time.monotonic()
        if self._due is not None:
            if now >= self._due:
                self._due, self._started = None, now
                self.child.start()
            return None
        if self.child.is_running:
            return None
        self._deaths.append(now)
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
        self._service = Service(household.service, environment)
        names = [f"worker {number}" for number in range(1, household.num_workers + 1)]
        # Standard output is for the ready line; a worker has nothing to say to a program that reads it.
        self._workers = [Child(name, household.worker, environment, stdout=_STDERR) for name in names]
        self._stop_asked = False
        self._kill_asked = False
        # Another parent later on means that the one that wanted to be followed is dead.
        self._parent = os.getppid() if os.environ.get(EXIT_WITH_PARENT) else None

    def run(self) -> int:
        """Stay until a signal or the service's end; the exit code."""
        with self._signals_noted():
            try:
                for child in (self._service, *self._workers):
                    child.start()
                service_code = self._keep()
                num_killed = self._take_down()
            finally:
                self._kill_all()
                self._service.hear_out()
        return service_code if service_code is not None else int(num_killed > 0)

    def _keep(self) -> int | None:
        """Until a signal, or the end of the service: then with its exit code."""
        posts = [Post(child, self._house) for child in (self._service, *self._workers)]
        while not self._must_stop:
            for post in posts:
                wait = post.fill()
                if wait is None:
                    continue
                ended = f"The {post.child.name} ended with exit code {post.child.exit_code}"
                if post.child is self._service and self._has_ended_for_good(post):
                    self._say(f"{ended}; stopping.")
                    return self._service.exit_code
                self._say(f"{ended}; it starts again in {wait:g} s.")
            time.sleep(self._house.poll_seconds)
        return None

    def _has_ended_for_good(self, service: Post) -> bool:
        """Meant to, or as it would again: before it was ever up, or too often."""
        too_often = service.num_recent_deaths >= self._house.num_service_deaths
        return self._service.exit_code in _MEANT or not self._service.was_ready or too_often

    def _take_down(self) -> int:
        """Workers first, then the service; at the end of the grace, or at a second Ctrl-C, everyone at once.

        Returns:
            How many had to be killed.
        """
        begun = time.monotonic()
        self._ask_to_stop(self._workers)
        self._wait_for(self._workers, begun + self._house.workers_grace_seconds)
        self._ask_to_stop([self._service])
        self._wait_for([*self._workers, self._service], begun + self._house.grace_seconds)
        killed = self._kill_all()
        if killed:
            self._say(f"Killed: {', '.join(killed)}.")
        return len(killed)

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
