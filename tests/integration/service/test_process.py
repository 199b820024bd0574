from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from jobs.settings import PROJECT
from jobs.tables import Job
from service.__main__ import main as service_main

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`python -m service` on the test's own data."""
    started = []

    def start(**variables: str) -> subprocess.Popen[str]:
        told = {"RATCHET_DATA": str(tmp_path), "RATCHET_PORT": "0", **variables}
        process = subprocess.Popen(
            [sys.executable, "-m", "service"],
            env={**os.environ, **told},
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What the command says before it gives up."""

    def refusal(**variables: str) -> str:
        for name, value in {"RATCHET_DATA": str(tmp_path), **variables}.items():
            monkeypatch.setenv(name, value)
        assert service_main() == 2
        said, complaint = capsys.readouterr()
        assert (said, complaint.count("\n")) == ("", 1)
        return complaint

    return refusal


def test_it_says_when_it_is_ready_and_ends_when_asked(start: Start, submit: Callable[..., Job]) -> None:
    job = submit()
    process = start()
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("Ratchet is ready at http://127.0.0.1:")
    url = ready.split()[-1]
    assert "server" not in httpx2.get(f"{url}/readyz").headers
    heard = [""] * 20

    def follow(number: int) -> None:
        with httpx2.stream("GET", f"{url}/jobs/{job.id}/events", timeout=20) as answer:
            for piece in answer.iter_text():
                heard[number] += piece

    readers = [threading.Thread(target=follow, args=(number,)) for number in range(len(heard))]
    for reader in readers:
        reader.start()
    deadline = time.monotonic() + 10
    while not all("event: state" in text for text in heard):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest, complaints = process.communicate(timeout=15)
    assert time.monotonic() - begun < 8
    assert (process.returncode, rest) == (0, "")
    assert "Traceback" not in complaints
    for reader in readers:
        reader.join(timeout=5)
    assert all(text.endswith("come back to go on.\n\n") for text in heard)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RATCHET_HOST": "0.0.0.0"}, "set RATCHET_API_KEY as well"),
        ({"RATCHET_PORT": "many"}, "RATCHET_PORT: "),
        ({"RATCHET_DATABASE_URL": "mysql://x"}, "SQLite file"),
        ({"RATCHET_HOST": "no.such.host.invalid", "RATCHET_API_KEY": "k"}, "Cannot listen on no.such.host.invalid"),
    ],
)
def test_settings_it_cannot_use_are_one_sentence(refusal: Refusal, variables: dict[str, str], sentence: str) -> None:
    assert sentence in refusal(**variables)


def test_a_port_in_use_is_one_sentence(refusal: Refusal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in refusal(RATCHET_PORT=str(taken.getsockname()[1]))
