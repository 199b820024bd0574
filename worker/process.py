"""A child process from the outside: started in a session of its own, read without blocking, told to stop, killed."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import IO

from core.machine.processes import POLITE
from worker.assignment import Assignment
from worker.child import PARENT_VARIABLE, PIPE_VARIABLE, PULSE, Said, parse_line

log = logging.getLogger(__name__)

TAIL_LINES = 40
STACK_LINES = 300
QUIET_SECONDS = 0.3
KILL_SECONDS = 5.0
LOOK_SECONDS = 0.005

DRAIN_SECONDS = 2.0
"""For so long after its end, what it said is waited for: a process that it started may hold its pipes open for ever."""

PASSED_ON = (
    "PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "VIRTUAL_ENV", "PYTHONPATH", "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN",
    "HTTPS_PROXY", "https_proxy", "NO_PROXY", "SSL_CERT_FILE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
    "RATCHET_FAILPOINT", "RATCHET_FAILPOINT_ONCE",
)  # fmt: skip
"""What a child inherits of the environment: never the API key, never the ledger's address."""

PASSED_ON_OF_TRACKERS = ("MLFLOW_", "WANDB_", "TRACKIO_")
"""And what begins like this: by such variables an operator tells trackers where to go, and with which key."""


class ChildProcess:
    """One attempt's process; it imports what training needs and waits until it is told what to do.

    Args:
        environment: The worker's own; see `PASSED_ON` and `PASSED_ON_OF_TRACKERS`.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._stacks: deque[str] | None = None
        self._heard = time.monotonic()
        self._said: queue.SimpleQueue[Said | None] = queue.SimpleQueue()
        self._all_said = False
        self._ended_at: float | None = None
        self._reaping = threading.Lock()
        receiving, sending = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "worker.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                pass_fds=[sending],
                start_new_session=True,
                env=_minimal(environment, sending),
            )
        except BaseException:
            os.close(receiving)
            raise
        finally:
            os.close(sending)
        assert self._process.stderr
        self._threads: list[threading.Thread] = []
        self._listen(self._read_tail, self._process.stderr)
        self._listen(self._read_events, os.fdopen(receiving, encoding="ascii", errors="replace"))

    @property
    def pid(self) -> int:
        """Process id, and id of its process group."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone and everything it said has been read."""
        return self.exit_code is not None and self._all_said

    @property
    def exit_code(self) -> int | None:
        """Its exit status; minus the signal's number if a signal ended it; None while it lives.

        Once it is dead, what it started is ended, too.
        """
        with self._reaping:
            if self._process.returncode is None and self._is_dead():
                # Until it is reaped, its number is that of no other process and no other group.
                self._end_group()
                self._process.poll()
                self._ended_at = time.monotonic()
            return self._process.returncode

    @property
    def silent_seconds(self) -> float:
        """Since its last sign of life; a child that waits gives none."""
        return time.monotonic() - self._heard

    def assign(self, assignment: Assignment) -> None:
        """Tell it what to do, once."""
        assert self._process.stdin
        self._heard = time.monotonic()
        # A child that died at once has closed its end; its exit status will say why.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(assignment.to_line())
            self._process.stdin.close()

    def read(self, timeout: float) -> list[Said]:
        """What it said since the last call, in order; waits up to `timeout` seconds for the first of it."""
        said: list[Said] = []
        if self._all_said:
            self._dies_within(timeout)
            return said
        # What is in the queue when this is decided is read below, also by a caller that comes late.
        is_late = self._ended_at is not None and time.monotonic() - self._ended_at > DRAIN_SECONDS
        with contextlib.suppress(queue.Empty):
            self._all_said = is_late and self._said.empty()
            said.append(self._note(self._said.get(timeout=timeout)))
            while len(said) < 1000:
                said.append(self._note(self._said.get_nowait()))
        return [item for item in said if item[0]]

    def stop(self) -> None:
        """Ask it to save and end at the next step boundary."""
        self._signal(signal.SIGTERM)

    def stacks(self, patience: float) -> list[str]:
        """Where each of its threads stands, as `faulthandler` says it; what it has not said in time is not waited for.

        Args:
            patience: In seconds.
        """
        stacks = self._stacks = deque[str](maxlen=STACK_LINES)
        deadline = time.monotonic() + patience
        self._signal(signal.SIGUSR1)
        num_lines = -1
        while time.monotonic() < deadline and self.exit_code is None and (not stacks or len(stacks) > num_lines):
            num_lines = len(stacks)
            time.sleep(min(QUIET_SECONDS, patience))
        self._stacks = None
        return list(stacks)

    def kill(self) -> None:
        """End it and all that it started, at once; one that a driver keeps from dying is not waited for."""
        with self._reaping:
            if self._process.returncode is None:
                self._end_group()
        if not self._dies_within(KILL_SECONDS):
            log.error("process %d does not die; something in the kernel keeps it", self.pid)
        if self._process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def close(self) -> None:
        """Wait for its pipes to be read to the end, unless that takes longer than it should."""
        deadline = time.monotonic() + DRAIN_SECONDS
        for thread in self._threads:
            thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def _listen(self, read: Callable[[IO[str]], None], pipe: IO[str]) -> None:
        thread = threading.Thread(target=read, args=[pipe], daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # What Python makes of the kernel's refusal.
            self.kill()
            pipe.close()
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        self._threads.append(thread)

    def _is_dead(self) -> bool:
        try:
            return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # Somebody else has reaped it; Popen knows what to make of that.
            return True

    def _dies_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.exit_code is None:
            if time.monotonic() >= deadline:
                return False
            time.sleep(LOOK_SECONDS)
        return True

    def _signal(self, number: int) -> None:
        with self._reaping:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _note(self, said: Said | None) -> Said:
        if said is None:
            self._all_said = True
            return "", {}
        return said

    def _read_events(self, pipe: IO[str]) -> None:
        try:
            with pipe:
                for line in pipe:
                    self._take(line)
        finally:
            self._said.put(None)

    def _take(self, line: str) -> None:
        self._heard = time.monotonic()
        try:
            said = parse_line(line)
            if said[0] != PULSE:
                self._said.put(said)
        except (ValueError, KeyError, TypeError):
            # The last line of a child that was killed may be half a line.
            log.warning("process %d said something that is no event: %.200r", self.pid, line)

    def _read_tail(self, stderr: IO[str]) -> None:
        with stderr:
            for line in stderr:
                (self.tail if self._stacks is None else self._stacks).append(line.rstrip())


def _minimal(environment: Mapping[str, str], pipe: int) -> dict[str, str]:
    passed = {
        name: value
        for name, value in environment.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_OF_TRACKERS)
    }
    return {
        **POLITE,
        **passed,
        PIPE_VARIABLE: str(pipe),
        PARENT_VARIABLE: str(os.getpid()),
        "PYTHONUNBUFFERED": "1",
        # Asked whether there is a GPU, torch asks the driver's library and does not initialise CUDA: a child that waits
        # does not know yet which GPU it may see.
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
