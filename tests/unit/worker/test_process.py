"""A child's process and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import process
from worker.process import ChildProcess

STARTS_ANOTHER = """
import json, os, subprocess, sys
pipe = int(os.environ["RATCHET_EVENT_PIPE"])
other = subprocess.Popen(["sleep", "60"], pass_fds=[pipe], start_new_session={own_session})
os.write(pipe, json.dumps({{"kind": "other", "data": {{"pid": other.pid}}}}).encode() + bytes([10]))
os._exit(3)
"""


@pytest.fixture
def child_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A child whose program is ours."""
    started: list[ChildProcess] = []

    def start(program: str) -> ChildProcess:
        script = tmp_path / "child"
        script.write_text(f"#!{sys.executable}\n{program}\n")
        script.chmod(0o755)
        with monkeypatch.context() as patched:
            patched.setattr("worker.process.sys.executable", str(script))
            started.append(ChildProcess())
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.close()


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def heard_to_the_end(child: ChildProcess) -> list[Any]:
    said, deadline = [], time.monotonic() + 10
    while not child.ended:
        assert time.monotonic() < deadline, "it is taken care of for ever"
        said += child.read(0.05)
    return said


def test_a_child_that_died_takes_along_what_it_started(child_that_runs: Any) -> None:
    child = child_that_runs(STARTS_ANOTHER.format(own_session=False))
    ((_, other),) = heard_to_the_end(child)
    assert child.exit_code == 3
    deadline = time.monotonic() + 5
    while is_alive(other["pid"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_pipe_that_someone_else_holds_open_is_not_waited_for(
    child_that_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "DRAIN_SECONDS", 0.3)
    child = child_that_runs(STARTS_ANOTHER.format(own_session=True))
    ((_, other),) = heard_to_the_end(child)
    begun = time.monotonic()
    child.close()
    assert time.monotonic() - begun < 2
    assert is_alive(other["pid"])
    os.kill(other["pid"], signal.SIGKILL)


def test_a_reader_that_comes_late_still_hears_all(child_that_runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "DRAIN_SECONDS", 0.0)
    child = child_that_runs(STARTS_ANOTHER.format(own_session=True))
    while child.exit_code is None:
        time.sleep(0.01)
    time.sleep(0.2)
    ((kind, other),) = heard_to_the_end(child)
    assert kind == "other"
    os.kill(other["pid"], signal.SIGKILL)


def test_the_number_of_a_process_that_was_reaped_is_not_signalled_again(
    child_that_runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = child_that_runs("")
    while child.exit_code is None:
        time.sleep(0.01)

    def misdirected(*_: Any) -> None:
        pytest.fail("by now this may be another process's number")

    monkeypatch.setattr("os.killpg", misdirected)
    monkeypatch.setattr("os.kill", misdirected)
    child.stop()
    child.stacks(0.01)
    child.kill()


def test_a_child_that_cannot_be_started_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("worker.process.subprocess.Popen", refuse)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BlockingIOError):
        ChildProcess()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_child_that_nobody_can_listen_to_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Popen(subprocess.Popen[str]):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            started.append(self)

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("worker.process.subprocess.Popen", Popen)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="temporarily unavailable"):
        ChildProcess()
    assert started[0].returncode == -signal.SIGKILL
