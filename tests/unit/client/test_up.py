from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# A household of small programs, which note their process ids so that a test can see who is left.
UP = """
import sys
from client.up import Household, Up

service, worker, num_workers, grace = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
household = Household(
    service=[sys.executable, "-c", service], worker=[sys.executable, "-c", worker], num_workers=num_workers,
    poll_seconds=0.01, first_backoff_seconds=0.05, longest_backoff_seconds=0.1,
    workers_grace_seconds=grace / 2, grace_seconds=grace, environment={"RATCHET_PORT": "8123"},
)
sys.exit(Up(household, say=lambda line: print(line, file=sys.stderr, flush=True)).run())
"""

NOTE = "import os, pathlib, signal, sys, time; pathlib.Path(f'{os.getpid()}.pid').touch();"
STAY = NOTE + "signal.signal(signal.SIGTERM, lambda *_: (print(sys.argv[0], 'left', file=sys.stderr), os._exit(0)));"
SERVICE = STAY + "print('ready at', os.environ['RATCHET_PORT'], flush=True);time.sleep(60)"
WORKER = STAY + "print('a worker chats', flush=True);time.sleep(60)"
STUBBORN = (
    NOTE + "signal.signal(signal.SIGTERM, signal.SIG_IGN);print('stays', file=sys.stderr, flush=True);time.sleep(60)"
)

# Unbuffered, each line is two writes, and between them somebody else's line may get.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "PYTHONPATH": str(ROOT)
}

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def start(service: str = SERVICE, worker: str = WORKER, num_workers: int = 1, grace: float = 10.0) -> Start:
        process = subprocess.Popen(
            [sys.executable, "-c", UP, service, worker, str(num_workers), str(grace)],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
    for pid in pids(tmp_path):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def pids(folder: Path) -> list[int]:
    return [int(path.stem) for path in folder.glob("*.pid")]


def alive(folder: Path) -> list[int]:
    return [pid for pid in pids(folder) if Path(f"/proc/{pid}").exists()]


def wait_for(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def stop(process: subprocess.Popen[str], number: signal.Signals = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


def test_the_services_ready_line_is_all_that_standard_output_says(start: Start, tmp_path: Path) -> None:
    up = start()
    wait_for(lambda: len(pids(tmp_path)) == 2)
    assert up.stdout.readline() == "ready at 8123\n"
    code, rest, err = stop(up)
    assert (code, rest) == (0, "")
    assert "a worker chats" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everyone_and_leaves_nobody_behind(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    up = start(num_workers=2)
    wait_for(lambda: len(pids(tmp_path)) == 3)
    up.stdout.readline()
    assert stop(up, number)[0] == 0
    assert alive(tmp_path) == []


def test_workers_leave_before_the_service_does(start: Start, tmp_path: Path) -> None:
    slow = STAY.replace("print(sys.argv[0], 'left'", "time.sleep(0.2), print('worker left'")
    up = start(SERVICE.replace("print(sys.argv[0], 'left'", "print('service left'"), slow + "time.sleep(60)")
    wait_for(lambda: len(pids(tmp_path)) == 2)
    up.stdout.readline()
    time.sleep(0.1)  # The worker notes its id before it is ready for the signal.
    said = [line for line in stop(up)[2].splitlines() if line.endswith("left")]
    assert said == ["worker left", "service left"]


def test_a_worker_that_dies_is_replaced(start: Start, tmp_path: Path) -> None:
    up = start(worker=NOTE + "sys.exit(7)")
    wait_for(lambda: len(pids(tmp_path)) > 4)
    code, _, err = stop(up)
    assert code == 0
    waits = [
        line.rsplit(" in ")[1] for line in err.splitlines() if line.startswith("The worker 1 ended with exit code 7")
    ]
    assert waits[:3] == ["0.05 s.", "0.1 s.", "0.1 s."]
    assert alive(tmp_path) == []


def test_the_services_death_ends_the_household_with_its_exit_code(start: Start, tmp_path: Path) -> None:
    up = start(service=NOTE + "time.sleep(0.2); sys.exit(5)")
    _, err = up.communicate(timeout=10)
    assert up.returncode == 5
    assert "The service ended with exit code 5" in err
    assert alive(tmp_path) == []


def test_a_service_that_was_killed_counts_as_a_shell_counts(start: Start) -> None:
    up = start(service=NOTE + "os.kill(os.getpid(), signal.SIGKILL)")
    up.communicate(timeout=10)
    assert up.returncode == 128 + signal.SIGKILL


def test_who_does_not_leave_in_time_is_killed(start: Start, tmp_path: Path) -> None:
    up = start(worker=STUBBORN, grace=0.4)
    while "stays" not in up.stderr.readline():
        pass
    code, _, err = stop(up)
    assert code == 1
    assert "Killed: worker 1." in err
    assert alive(tmp_path) == []


def test_a_second_ctrl_c_does_not_wait(start: Start, tmp_path: Path) -> None:
    up = start(worker=STUBBORN, grace=60.0)
    while "stays" not in up.stderr.readline():
        pass
    up.send_signal(signal.SIGINT)
    time.sleep(0.1)
    assert up.poll() is None
    assert stop(up, signal.SIGINT)[0] == 1
    assert alive(tmp_path) == []


def test_a_household_that_belongs_to_someone_ends_with_them(tmp_path: Path) -> None:
    owner = f"""
import os, subprocess, sys
up = subprocess.Popen([sys.executable, "-c", {UP!r}, {SERVICE!r}, {WORKER!r}, "1", "10"],
    stdout=subprocess.PIPE, env={{**os.environ, "RATCHET_EXIT_WITH_PARENT": "1"}}, text=True)
up.stdout.readline()
print("up", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", owner],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    wait_for(lambda: len(pids(tmp_path)) == 2)
    process.kill()
    process.communicate()
    wait_for(lambda: alive(tmp_path) == [])


MORTAL = (
    STAY
    + "print('Ratchet is ready at http://127.0.0.1:4567', flush=True); print(os.environ['RATCHET_PORT'], flush=True);"
)


def test_a_service_that_dies_is_back_on_the_port_it_had_and_its_workers_go_on(start: Start, tmp_path: Path) -> None:
    up = start(service=MORTAL + "time.sleep(60)")
    assert [up.stdout.readline() for _ in range(2)] == ["Ratchet is ready at http://127.0.0.1:4567\n", "8123\n"]
    wait_for(lambda: len(pids(tmp_path)) == 2)
    (service,) = (pid for pid in pids(tmp_path) if b"Ratchet is ready" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(service, signal.SIGKILL)
    assert [up.stdout.readline() for _ in range(2)] == ["Ratchet is ready at http://127.0.0.1:4567\n", "4567\n"]
    assert len(pids(tmp_path)) == 3, "nobody but the service was started again"
    assert len(alive(tmp_path)) == 2
    code, _, err = stop(up)
    assert code == 0
    assert "The service ended with exit code 137; it starts again in 0.05 s." in err
    assert alive(tmp_path) == []


def test_a_service_that_keeps_dying_ends_the_household_with_its_exit_code(start: Start, tmp_path: Path) -> None:
    up = start(service=MORTAL + "sys.exit(5)")
    _, err = up.communicate(timeout=10)
    assert up.returncode == 5
    said = [line.split("; ")[1] for line in err.splitlines() if line.startswith("The service ended with exit code 5")]
    assert said == ["it starts again in 0.05 s.", "it starts again in 0.1 s.", "stopping."]
    assert alive(tmp_path) == []


@pytest.mark.parametrize("code", [0, 2])
def test_a_service_that_means_to_end_is_not_started_again(start: Start, tmp_path: Path, code: int) -> None:
    up = start(service=MORTAL + f"sys.exit({code})")
    _, err = up.communicate(timeout=10)
    assert up.returncode == code
    assert "starts again" not in err
    assert alive(tmp_path) == []
