from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from client.cli import main

Ratchet = Callable[..., tuple[int, str, str]]

JOB: dict[str, Any] = {
    "id": "job_tale",
    "name": "tale",
    "state": "queued",
    "config": {"source": "tale.md", "batch_size": 4, "block_size": 32},
    "step": 0,
    "start_step": 0,
    "training_steps": 2,
    "attempt": 0,
    "parent": None,
    "checkpoint": None,
    "progress": 0.0,
    "eta_seconds": None,
    "tokens_per_second": None,
    "train_loss": None,
    "val_loss": None,
    "error": None,
    "created_at": "2025-01-01T00:00:00.000Z",
    "started_at": None,
    "finished_at": None,
    "metadata": {},
}


def sse(*events: tuple[int, str, dict[str, Any]]) -> str:
    return "".join(f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for seq, kind, data in events)


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class FakeService:
    """Answers what a test lays ready, on a real socket, and keeps what it was asked."""

    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    answers: dict[tuple[str, str], tuple[int, str, str]] = field(default_factory=dict)

    def lay(self, method: str, path: str, body: Any, status: int = 200) -> None:
        """`body` is JSON, or a string for a stream."""
        kind = "text/event-stream" if isinstance(body, str) else "application/json"
        self.answers[method, path] = (status, kind, body if isinstance(body, str) else json.dumps(body))

    def last(self, path: str) -> Asked:
        return next(asked for asked in reversed(self.asked) if asked.path.partition("?")[0] == path)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RATCHET_URL", "RATCHET_API_KEY", "RATCHET_EXIT_WITH_PARENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    fake = FakeService()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer()

        def do_POST(self) -> None:
            self.answer()

        def do_DELETE(self) -> None:
            self.answer()

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or "null")
            fake.asked.append(Asked(self.command, self.path, dict(self.headers), body))
            missing = (404, "application/json", json.dumps({"detail": "There is no such thing.", "code": "not_found"}))
            status, kind, said = fake.answers.get((self.command, self.path.partition("?")[0]), missing)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        fake.url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("RATCHET_URL", fake.url)
        yield fake
        server.shutdown()
        thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for, instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr("client.api.time.sleep", waited.append)
    return waited


@pytest.fixture
def ratchet(capsys: pytest.CaptureFixture[str]) -> Ratchet:
    """Runs the command in this process; exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert isinstance(left.value.code, int)
        return left.value.code, *capsys.readouterr()

    return run
