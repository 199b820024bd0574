from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.conftest import PROJECT

TINY: dict[str, Any] = {
    "test_mode": True,
    "training_steps": 40,
    "checkpoint_interval": 20,
    "block_size": 32,
    "max_new_tokens": 20,
}


LEAN = {"RATCHET_WARM_CHILD": "false", "RATCHET_INFERENCE": "false"}
"""For a service that trains a run or two and generates nothing: torch is not imported for what nobody asks for."""


class Ratchet:
    """`ratchet up` as a person starts it, on a port of its own."""

    def __init__(self, data: Path, *options: str, **env: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RATCHET_")}
        command = [sys.executable, "-m", "client", "up", "--port", "0", "--data", str(data), *options]
        self.process = subprocess.Popen(
            command,
            cwd=PROJECT,
            env={**clean, "RATCHET_STOP_POLL_SECONDS": "0.1", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stderr
        self.ready_line = self.process.stdout.readline()
        self.url = self.ready_line.split()[-1] if self.ready_line else ""
        self._said: list[str] = []
        # Somebody has to read it, or the children would wait for a full pipe.
        self._reader = threading.Thread(target=self._said.extend, args=[self.process.stderr], daemon=True)
        self._reader.start()
        self.http = httpx2.Client(base_url=self.url or "http://nowhere", timeout=60)

    @property
    def said(self) -> str:
        """Standard error so far."""
        return "".join(self._said)

    def submit(self, **config: Any) -> dict[str, Any]:
        answer = self.http.post("/jobs", json={**TINY, **config})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def follow(self, job_id: str) -> str:
        """The run's log as text; returns when the run ends."""
        return self.http.get(f"/jobs/{job_id}/events", params={"format": "text"}).text

    def stop(self) -> int:
        """Ctrl-C."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(timeout=40)
        self._reader.join(timeout=10)
        self.http.close()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        return code


@pytest.fixture(scope="session")
def started() -> Callable[..., Any]:
    @contextmanager
    def started(data: Path, *options: str, **env: str) -> Iterator[Ratchet]:
        ratchet = Ratchet(data, *options, **env)
        try:
            yield ratchet
        finally:
            ratchet.stop()

    return started


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory, bundled_source: Path) -> Path:
    """The folder of texts of the service that `ratchet` is."""
    folder = tmp_path_factory.mktemp("sources")
    shutil.copy(bundled_source, folder)
    return folder


@pytest.fixture(scope="module")
def ratchet(tmp_path_factory: pytest.TempPathFactory, started: Callable[..., Any], sources: Path) -> Iterator[Ratchet]:
    """One service and worker for all tests of a file that leave them in order."""
    with started(tmp_path_factory.mktemp("up") / "data", "--sources", str(sources)) as up:
        yield up
