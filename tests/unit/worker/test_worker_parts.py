from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from core.devices import as_out_of_memory
from tests.conftest import PROJECT
from worker.assignment import Assignment
from worker.causes import cause_of
from worker.child import PULSE, PULSE_SECONDS, Pipe, attempt, parse_line, train
from worker.process import ChildProcess
from worker.settings import WorkerSettings
from worker.stacks import readable
from worker.stop import StopSign

ASSIGNMENT = Assignment("job_a", 1, 1, {}, 10, "sources", "checkpoints", "models")


@pytest.fixture
def child_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A child whose program is ours; it may write to the pipe as `pipe`."""
    started: list[ChildProcess] = []

    def start(program: str) -> ChildProcess:
        script = tmp_path / "child"
        opening = "import os, sys, signal, time; pipe = os.fdopen(int(os.environ['RATCHET_EVENT_PIPE']), 'w')"
        script.write_text(f"#!{sys.executable}\n{opening}\n{program}\n")
        script.chmod(0o755)
        monkeypatch.setattr("worker.process.sys.executable", str(script))
        started.append(ChildProcess())
        started[-1].assign(ASSIGNMENT)
        return started[-1]

    yield start
    for child in started:
        child.kill()
        child.close()


def all_of(child: ChildProcess) -> list[Any]:
    said = []
    while not child.ended:
        said += child.read(0.2)
    return said


def test_an_assignment_survives_the_way_through_a_line() -> None:
    assert Assignment.from_line(ASSIGNMENT.to_line()) == ASSIGNMENT


@pytest.mark.parametrize(("fate", "code"), [("gone", "checkpoint_not_found"), ("broken", "checkpoint_corrupt")])
def test_a_checkpoint_that_goes_before_it_is_read_ends_the_attempt_and_not_the_job(
    tmp_path: Path, fate: str, code: str
) -> None:
    folder = tmp_path / "checkpoint_a"
    if fate == "broken":
        folder.mkdir()
    pipe = Pipe(os.open(os.devnull, os.O_WRONLY))
    kind, data = attempt(replace(ASSIGNMENT, resume=str(folder)), pipe, StopSign())
    pipe._file.close()
    assert (kind, data["code"], data["final"]) == ("failure", code, False)
    assert "checkpoint_a" in data["message"]
    assert str(tmp_path) not in data["message"]


def test_a_line_that_is_no_event_is_passed_over_and_half_a_line_too(child_that_runs: Any) -> None:
    good = '{"kind":"log","data":{"line":"a"}}'
    child = child_that_runs(f"pipe.write('{good}\\nnot json\\n[]\\n{good}\\n' + '{good}'[:9]); pipe.flush()")
    assert all_of(child) == [("log", {"line": "a"})] * 2


@pytest.mark.parametrize(
    ("program", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed", "ran out of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal", "SIGSEGV"),
        ("sys.exit(3)", "exited", "exit code 3"),
    ],
)
def test_how_a_child_ended_is_told_apart(child_that_runs: Any, program: str, code: str, said: str) -> None:
    child = child_that_runs(program)
    assert all_of(child) == []
    assert child.exit_code
    cause = cause_of(child.exit_code, None)
    assert cause.code == code
    assert said in cause.message


def test_a_pulse_is_a_sign_of_life_and_nothing_else(child_that_runs: Any) -> None:
    pulse = '{"kind":"pulse","data":{}}'
    child = child_that_runs(f"for _ in range(8): pipe.write('{pulse}\\n'); pipe.flush(); time.sleep(0.1)")
    while child.exit_code is None:
        assert child.read(0.05) == []
        silent = child.silent_seconds
    assert silent < 0.6
    assert all_of(child) == []


def test_a_run_that_says_something_needs_no_pulse_and_one_that_is_silent_gives_one_a_second() -> None:
    receiving, sending = os.pipe()
    pipe = Pipe(sending)
    pipe.send("log", {"line": "a"})
    for _ in range(5):
        pipe.pulse()
    pipe._spoke -= PULSE_SECONDS
    for _ in range(5):
        pipe.pulse()
    pipe._file.close()
    with os.fdopen(receiving) as said:
        assert [parse_line(line)[0] for line in said] == ["log", PULSE]


def test_a_child_tells_where_it_stands_even_if_it_ignores_all_else(child_that_runs: Any) -> None:
    child = child_that_runs(
        "import faulthandler, threading\n"
        "faulthandler.register(signal.SIGUSR1, all_threads=True)\n"
        "print('an old line', file=sys.stderr, flush=True)\n"
        "def stuck(): time.sleep(60)\n"
        "threading.Thread(target=stuck, daemon=True).start()\n"
        'pipe.write(\'{"kind":"hello","data":{}}\\n\'); pipe.flush()\n'
        "stuck()"
    )
    while not child.read(0.1):
        pass
    lines = list(readable(child.stacks(5)))
    assert [line for line in lines if line.startswith("thread")] == [
        "thread 1, most recent call first:",
        "thread 2, most recent call first:",
    ]
    assert "  child, line 6 in stuck" in lines
    child.kill()
    child.close()
    assert list(child.tail) == ["an old line"], "the stacks are for the job's log"


@pytest.mark.parametrize("program", ["signal.signal(signal.SIGUSR1, signal.SIG_IGN); time.sleep(60)", "time.sleep(60)"])
def test_a_child_that_cannot_tell_where_it_stands_is_not_waited_for(child_that_runs: Any, program: str) -> None:
    child = child_that_runs(program)
    begun = time.monotonic()
    assert child.stacks(0.5) == []
    assert time.monotonic() - begun < 2


def test_a_child_sees_the_gpu_of_its_place_before_anything_else_happens(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("RATCHET_FAILPOINT", "child.begun:error=EIO")
    pipe = Pipe(os.open(tmp_path / "said", os.O_WRONLY | os.O_CREAT))
    for told, seen in ((None, "0,1"), ("GPU-a", "GPU-a"), ("", "")):
        with pytest.raises(OSError, match="Input/output"):
            train(replace(ASSIGNMENT, visible_devices=told), pipe, StopSign())
        assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
    pipe._file.close()


def test_a_child_that_waits_has_not_touched_a_gpu() -> None:
    program = (
        "import torch, worker.child\n"
        "touched = []\n"
        "torch.cuda._lazy_init = lambda: touched.append('touched')\n"
        "worker.child.warm_up(lambda: None)\n"
        "assert not touched and not torch.cuda.is_initialized()\n"
        "import sys; assert 'transformers' in sys.modules, 'it warmed up as one that waits does'\n"
    )
    # Its standard input stays open and says nothing, as a worker's does until there is a job.
    waiting = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, cwd=PROJECT)
    with waiting:
        assert waiting.wait(60) == 0


def test_a_second_signal_finds_the_sign_raised_already() -> None:
    sign = StopSign()
    assert not sign.is_set()
    for _ in range(2):
        sign.set(15, None)
        assert sign.is_set()


def test_a_stop_is_a_signal_that_the_child_may_obey_in_its_time(child_that_runs: Any) -> None:
    child = child_that_runs(
        'signal.signal(signal.SIGTERM, lambda *_: (pipe.write(\'{"kind":"bye","data":{}}\\n\'), sys.exit(0)))\n'
        'pipe.write(\'{"kind":"hello","data":{}}\\n\'); pipe.flush(); time.sleep(20)'
    )
    said: list[Any] = []
    while not said:
        said = child.read(0.1)
    child.stop()
    assert (said + all_of(child), child.exit_code) == ([("hello", {}), ("bye", {})], 0)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
def test_memory_that_ran_out_is_known_however_it_is_told(error: Exception) -> None:
    short = as_out_of_memory(error)
    assert short is not None
    assert "smaller batch_size" in short.message


def test_another_error_is_not_taken_for_it() -> None:
    assert as_out_of_memory(RuntimeError("shapes do not match")) is None
    assert as_out_of_memory(ValueError("out of memory of its shape")) is None


def test_a_shorter_lease_brings_shorter_beats_and_scans() -> None:
    assert (WorkerSettings(lease_seconds=3).heartbeat_seconds, WorkerSettings(lease_seconds=3).scan_seconds) == (
        0.5,
        0.5,
    )
    assert (WorkerSettings(lease_seconds=60).heartbeat_seconds, WorkerSettings().heartbeat_seconds) == (5, 5)
    assert WorkerSettings(lease_seconds=3, heartbeat_seconds=1).heartbeat_seconds == 1


def test_a_worker_that_would_beat_too_late_refuses_to_start() -> None:
    with pytest.raises(ValidationError, match="less than two thirds of lease_seconds"):
        WorkerSettings(lease_seconds=5, heartbeat_seconds=4)
