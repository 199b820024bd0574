from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from jobs.database import Database
from service.settings import ServiceSettings
from tests.integration.service.conftest import TOKEN, Enlist, Running, Save, Serve

ASK: dict[str, Any] = {"model": "gpt2", "prompt": "Once"}


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@dataclass
class FakeWorker:
    """A worker's inference endpoint that answers as it is told."""

    status: int = 200
    refusal: Any = None
    lines: list[Any] = field(default_factory=list)
    endless: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    left_alone: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(json.loads(request.rfile.read(int(request.headers["Content-Length"]))))
        self.tokens.append(request.headers["Authorization"])
        request.send_response(self.status)
        request.end_headers()
        if self.refusal is not None:
            request.wfile.write(json.dumps(self.refusal).encode())
            return
        for line in self.lines:
            request.wfile.write(json.dumps(line).encode() + b"\n")
        while self.endless and not self.left_alone.is_set():
            try:
                request.wfile.write(b'{"index": 0, "text": "on and "}\n')
                request.wfile.flush()
                time.sleep(0.01)
            except OSError:
                self.left_alone.set()


@pytest.fixture
def worker(enlist: Enlist) -> Iterator[FakeWorker]:
    fake = FakeWorker()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            fake.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    enlist("w1", f"http://127.0.0.1:{server.server_port}")
    yield fake
    fake.left_alone.set()
    server.shutdown()
    server.server_close()
    thread.join()


def choice(index: int, *pieces: str, reason: str = "length") -> list[dict[str, Any]]:
    end = {"index": index, "finish_reason": reason, "num_prompt_tokens": 2, "num_new_tokens": len(pieces)}
    return [*({"index": index, "text": piece} for piece in pieces), end]


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    blocks = [block.split("\n") for block in text.split("\n\n") if block]
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks]


def test_the_choices_of_all_prompts_come_in_order(client: TestClient, worker: FakeWorker, save: Save) -> None:
    saved = save()
    worker.lines = [
        *choice(1, "b"),
        *choice(0, "a", "A", reason="stop"),
        *choice(3, "d"),
        *choice(2, "c"),
        {"done": True},
    ]
    body = {"checkpoint": "latest", "prompt": ["x", "y"], "n": 2, "stop": "\n", "seed": 5, "max_new_tokens": 2}
    answer = client.post("/generate", json=body)
    assert answer.status_code == 200
    assert answer.json() == {
        "checkpoint": saved.manifest.name,
        "model": None,
        "choices": [
            {"index": 0, "prompt_index": 0, "text": "aA", "finish_reason": "stop"},
            {"index": 1, "prompt_index": 0, "text": "b", "finish_reason": "length"},
            {"index": 2, "prompt_index": 1, "text": "c", "finish_reason": "length"},
            {"index": 3, "prompt_index": 1, "text": "d", "finish_reason": "length"},
        ],
        "usage": {"prompt_tokens": 8, "completion_tokens": 5},
    }
    assert worker.tokens == [f"Bearer {TOKEN}"]
    assert worker.asked == [
        {
            **{"checkpoint": saved.manifest.name, "model": None, "prompts": ["x", "y"], "n": 2, "max_new_tokens": 2},
            **{"temperature": 0.7, "top_k": 50, "top_p": None, "repetition_penalty": 1.0, "seed": 5, "stop": ["\n"]},
        }
    ]


def test_a_stream_sends_each_piece(client: TestClient, worker: FakeWorker) -> None:
    worker.lines = [*choice(0, "a", "\u2028"), {"done": True}]
    answer = client.post("/generate", json={**ASK, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "id:" not in answer.text
    assert events(answer.text) == [
        ("token", {"index": 0, "text": "a"}),
        ("token", {"index": 0, "text": "\u2028"}),
        ("finish", {"index": 0, "finish_reason": "length", "num_prompt_tokens": 2, "num_new_tokens": 2}),
        ("done", {}),
    ]


@pytest.mark.parametrize(
    ("status", "refusal", "seen"),
    [
        (404, {"code": "checkpoint_not_found", "message": "no"}, (404, "checkpoint_not_found")),
        (422, {"code": "generation_invalid", "message": "no"}, (422, "generation_invalid")),
        (409, {"code": "model_unavailable", "message": "no"}, (409, "model_unavailable")),
        (401, {"code": "unauthorized", "message": "no"}, (502, "generation_failed")),
        (500, {"code": "boom", "message": "Traceback"}, (502, "generation_failed")),
        (503, {"code": "busy", "message": "later"}, (503, "worker_unavailable")),
        (404, ["not", "ours"], (502, "generation_failed")),
    ],
)
def test_a_workers_refusal_is_told_if_it_concerns_the_request(
    client: TestClient, worker: FakeWorker, status: int, refusal: Any, seen: tuple[int, str]
) -> None:
    worker.status, worker.refusal = status, refusal
    for stream in (False, True):
        answer = client.post("/generate", json={**ASK, "stream": stream})
        assert (answer.status_code, answer.json()["code"]) == seen
        assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("last", "seen"),
    [
        ([{"error": {"code": "generation_invalid", "message": "too long"}}], (422, "generation_invalid")),
        ([{"error": {"code": "oom", "message": "no memory"}}], (502, "generation_failed")),
        ([], (502, "generation_failed")),
        (["not an object"], (502, "generation_failed")),
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(
    client: TestClient, worker: FakeWorker, last: list[Any], seen: tuple[int, str]
) -> None:
    worker.lines = [{"index": 0, "text": "a"}, *last]
    answer = client.post("/generate", json=ASK)
    assert (answer.status_code, answer.json()["code"]) == seen
    streamed = events(client.post("/generate", json={**ASK, "stream": True}).text)
    assert [kind for kind, _ in streamed] == ["token", "error"]
    assert streamed[-1][1]["code"] == seen[1]


BEYOND: list[tuple[dict[str, Any], str]] = [
    ({"checkpoint": "latest"}, ""),
    ({"model": None}, ""),
    ({"model": "/etc"}, "model"),
    ({"model": "../x"}, "model"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["x"] * 65}, "prompt"),
    ({"prompt": "x" * 100_001}, "prompt"),
    ({"max_new_tokens": 4097}, "max_new_tokens"),
    ({"max_new_tokens": 10**30}, "max_new_tokens"),
    ({"n": 9}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"temperature": -1}, "temperature"),
    ({"repetition_penalty": 0.009}, "repetition_penalty"),
    ({"repetition_penalty": 101}, "repetition_penalty"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": ["x", 5]}, "prompt.1"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop.1"),
    ({"tempreture": 1}, "tempreture"),
]


def test_what_no_worker_could_do_is_refused(client: TestClient) -> None:
    for changes, field_name in BEYOND:
        answer = client.post("/generate", json={**ASK, **changes})
        assert (answer.status_code, answer.json()["errors"][-1]["field"]) == (422, field_name)
        assert not re.search(r"str\b|constrained|\[", " ".join(error["field"] for error in answer.json()["errors"]))


def test_more_than_four_stops_are_refused(client: TestClient) -> None:
    assert client.post("/generate", json={**ASK, "stop": ["a"] * 5}).status_code == 422


def test_an_unknown_checkpoint_is_a_404(client: TestClient, worker: FakeWorker) -> None:
    for ref in ("nope", "latest", "\x00", "../../etc"):
        answer = client.post("/generate", json={"checkpoint": ref, "prompt": "x"})
        assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
    assert worker.asked == []


def test_without_a_worker_at_work_it_is_a_503(client: TestClient, enlist: Enlist) -> None:
    enlist("silent", "http://127.0.0.1:9", age=31)
    enlist("leaving", "http://127.0.0.1:9", draining=True)
    enlist("mute", None)
    answer = client.post("/generate", json=ASK)
    assert (answer.status_code, answer.json()["code"]) == (503, "worker_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_a_worker_that_does_not_answer_is_a_503(client: TestClient, enlist: Enlist) -> None:
    enlist("w1", "http://127.0.0.1:9")
    answer = client.post("/generate", json=ASK)
    assert (answer.status_code, answer.json()["code"]) == (503, "worker_unavailable")


def test_the_worker_heard_of_last_is_asked(client: TestClient, enlist: Enlist, worker: FakeWorker) -> None:
    enlist("older", "http://127.0.0.1:9", age=10)
    worker.lines = [*choice(0, "a"), {"done": True}]
    assert client.post("/generate", json=ASK).status_code == 200


def test_the_operators_base_model_may_be_a_folder(serve: Serve, worker: FakeWorker) -> None:
    worker.lines = [*choice(0, "a"), {"done": True}]
    client = serve(base_model="/models/ours")
    assert client.post("/generate", json={**ASK, "model": "/models/ours"}).json()["model"] == "/models/ours"


@pytest.mark.parametrize("stream", [True, False])
def test_generation_stops_when_its_reader_goes_away(running: Running, worker: FakeWorker, stream: bool) -> None:
    worker.endless = True
    if not stream:
        # By hand, so that it goes away while the worker is at it, however long it took to come to that.
        body = json.dumps({**ASK, "stream": False}).encode()
        host = running.url.removeprefix("http://")
        head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), timeout=10) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            until(lambda: bool(worker.asked))
            assert not worker.left_alone.is_set()
    else:
        with httpx2.stream("POST", f"{running.url}/generate", json={**ASK, "stream": True}) as answer:
            text = answer.iter_text()  # held: dropped, it would close the connection
            next(text)
    assert worker.left_alone.wait(10)
    until(lambda: running.server._app.state.tails.num_streams == 0)


def test_workers_are_listed_without_their_secrets(client: TestClient, enlist: Enlist) -> None:
    enlist("w1", "http://127.0.0.1:9", age=60, devices=["cpu"])
    answer = client.get("/workers")
    (row,) = answer.json()["data"]
    assert (row["id"], row["alive"], row["generates"], row["devices"]) == ("w1", False, True, ["cpu"])
    assert TOKEN not in answer.text
    assert "127.0.0.1:9" not in answer.text


def test_readiness_tells_of_workers_without_failing_for_them(client: TestClient, enlist: Enlist) -> None:
    assert client.get("/readyz").json() == {"status": "ok", "worker": False}
    enlist("w1", None)
    assert client.get("/readyz").json() == {"status": "ok", "worker": True}


def test_without_its_ledger_the_service_lives_but_is_not_ready(
    serve: Serve, settings: ServiceSettings, ledger: Database
) -> None:
    client = serve()
    with ledger.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE worker RENAME TO gone")
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["code"]) == (503, "ledger_unavailable")
    assert "retry-after" in answer.headers
    assert client.get("/livez").json() == {"status": "ok"}


def test_a_probe_may_ask_for_the_head_alone(running: Running) -> None:
    for path in ("/livez", "/readyz"):
        answer = httpx2.head(f"{running.url}{path}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == httpx2.get(f"{running.url}{path}").headers["content-type"]
