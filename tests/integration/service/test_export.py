from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import anyio
import httpx2
import pytest
from starlette.testclient import TestClient

from service.inference import MAX_ERRANDS
from service.settings import ServiceSettings
from tests.integration.service.conftest import TOKEN, Answers, Enlist, Save, until

DONE = {"name": "mine", "path": "mine", "size_bytes": 7, "kind": "model"}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (None, {"name": None, "merge": False}),
        ({}, {"name": None, "merge": False}),
        ({"name": "mine", "merge": True}, {"name": "mine", "merge": True}),
    ],
)
def test_a_checkpoint_is_exported_by_a_worker(
    client: TestClient, worker: Answers, save: Save, body: Any, told: dict[str, Any]
) -> None:
    saved, asked = save(), worker(200, DONE)
    for ref in (saved.manifest.id, saved.manifest.name, "latest"):
        answer = client.post(f"/checkpoints/{ref}/export", json=body)
        assert (answer.status_code, answer.json()) == (201, DONE)
    assert {request.url.path for request in asked} == {"/export"}
    assert {request.headers["authorization"] for request in asked} == {f"Bearer {TOKEN}"}
    assert [json.loads(request.content) for request in asked] == [{"checkpoint": saved.manifest.name, **told}] * 3


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "tmp-mine", "a..b", "x" * 201, "ü", 5])
def test_a_name_that_no_run_could_use_is_refused(client: TestClient, worker: Answers, save: Save, name: Any) -> None:
    asked = worker(200, DONE)
    answer = client.post(f"/checkpoints/{save().manifest.id}/export", json={"name": name})
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "name")
    assert asked == []


@pytest.mark.parametrize(
    ("status", "code", "seen"),
    [
        (409, "export_unsupported", (409, "export_unsupported")),
        (409, "model_exists", (409, "model_exists")),
        (409, "checkpoint_corrupt", (409, "checkpoint_corrupt")),
        (507, "disk_full", (503, "disk_full")),
        (507, "storage_error", (503, "storage_error")),
        (500, "boom", (502, "generation_failed")),
    ],
)
def test_a_workers_refusal_is_told(
    client: TestClient, worker: Answers, save: Save, status: int, code: str, seen: tuple[int, str]
) -> None:
    worker(status, {"code": code, "message": "why it is so"})
    answer = client.post(f"/checkpoints/{save().manifest.id}/export")
    assert (answer.status_code, answer.json()["code"]) == seen
    assert ("why it is so" in answer.json()["detail"]) == (status != 500)


def test_a_checkpoint_that_is_not_there_is_a_404(client: TestClient, worker: Answers) -> None:
    asked = worker(200, DONE)
    answer = client.post("/checkpoints/nope/export")
    assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
    assert asked == []


def test_without_a_worker_nothing_is_exported(client: TestClient, save: Save) -> None:
    answer = client.post(f"/checkpoints/{save().manifest.id}/export")
    assert (answer.status_code, answer.json()["code"]) == (503, "worker_unavailable")


@pytest.fixture
def wakes_up(client: TestClient, enlist: Enlist) -> Iterator[threading.Event]:
    """Until it is set, a worker's generation process answers nothing."""
    enlist("w1", "http://worker")
    awake = threading.Event()

    async def answer(_: httpx2.Request) -> httpx2.Response:
        while not awake.is_set():
            await anyio.sleep(0.01)
        return httpx2.Response(200, json=DONE)

    client.app.state.inference._http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))  # type: ignore[attr-defined]
    yield awake
    awake.set()


@pytest.mark.parametrize("asked", ["export", "conversion"])
def test_those_who_wait_for_a_silent_worker_leave_room_for_all_others(
    client: TestClient, settings: ServiceSettings, save: Save, wakes_up: threading.Event, asked: str
) -> None:
    path, method = f"/checkpoints/{save().manifest.id}/export", "POST"
    if asked == "conversion":
        (settings.checkpoints / "checkpoint_old.pt").write_bytes(b"legacy")
        path, method = "/checkpoints/checkpoint_old", "GET"
    num_threads = 42  # More than there are to answer with.
    with ThreadPoolExecutor(num_threads + 1) as people:
        waiting = [people.submit(client.request, method, path) for _ in range(num_threads)]
        try:
            looking = people.submit(client.get, "/jobs")
            assert looking.result(timeout=10).status_code == 200
            until(lambda: sum(each.done() for each in waiting) >= num_threads - MAX_ERRANDS)
            wait(waiting, timeout=0.5)  # Were fewer let in than may be, more would be told.
            told = [each.result() for each in waiting if each.done()]
        finally:
            wakes_up.set()
    assert {(answer.status_code, answer.json()["code"]) for answer in told} == {(429, "too_many_at_once")}
    assert told[0].headers["retry-after"]
    assert len(told) == num_threads - MAX_ERRANDS
    assert client.request(method, path).status_code != 429, "there is room again"
