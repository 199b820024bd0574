"""The service on a ledger that is on a server: the same answers."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from jobs.database import Database
from service.app import create_app
from service.settings import ServiceSettings
from tests.integration.service.conftest import BODY, URL, Hand, Save
from tests.postgres import PostgresServer


@pytest.fixture
def settings(settings: ServiceSettings, postgres: PostgresServer) -> ServiceSettings:
    return settings.model_copy(update={"database_url": postgres.make_database()})


@pytest.fixture
def client(settings: ServiceSettings) -> Iterator[TestClient]:
    with TestClient(create_app(settings), base_url=URL) as client:
        yield client


@pytest.fixture
def hand(client: TestClient, settings: ServiceSettings) -> Iterator[Hand]:
    ledger = Database(settings.database_url)
    yield Hand(ledger)
    ledger.close()


def test_a_job_is_taken_in_followed_and_resumed(client: TestClient, hand: Hand, save: Save) -> None:
    made = client.post("/jobs", json={**BODY, "metadata": {"team": "red", "$odd 'key": "true"}})
    assert made.status_code == 201
    job = hand.claim()
    saved = save(step=20, job_id=job.id)
    told = {"step": 20, "id": saved.manifest.id, "name": saved.manifest.name, "size_bytes": 7, "val_loss": 2.5}
    hand.say(job, ("log", {"line": "begun"}), ("step", {"step": 20, "loss": 2.0}), ("checkpoint", told))
    hand.finish(job)
    with client.stream("GET", f"/jobs/{job.id}/events") as answer:
        numbers = [int(line[4:]) for line in answer.iter_lines() if line.startswith("id: ")]
    assert numbers == list(range(1, client.get(f"/jobs/{job.id}/events?format=json").json()["data"][-1]["seq"] + 1))
    assert client.get("/jobs", params={"metadata[$odd 'key]": "true"}).json()["data"][0]["id"] == job.id
    assert client.get("/jobs", params={"metadata[team]": "blue"}).json()["data"] == []
    assert client.get("/checkpoints", params={"order": "best"}).json()["data"][0]["id"] == saved.manifest.id
    assert client.post(f"/jobs/{job.id}/resume", json={"training_steps": 5}).status_code == 201
    assert client.delete(f"/jobs/{job.id}").status_code == 204
    assert client.get("/readyz").json()["status"] == "ok"


def test_ten_repeats_at_once_make_one_job(client: TestClient) -> None:
    def ask(_: int) -> tuple[int, str]:
        answer = client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k"})
        return answer.status_code, answer.json()["id"]

    with ThreadPoolExecutor(10) as pool:
        answers = set(pool.map(ask, range(10)))
    assert len(answers) == 1
    assert answers.pop()[0] == 201


def test_ten_repeats_at_once_let_a_job_go_on_once(client: TestClient) -> None:
    job_id = client.post("/jobs", json=BODY).json()["id"]
    assert client.post(f"/jobs/{job_id}/pause").json()["state"] == "paused"

    def ask(_: int) -> int:
        return client.post(f"/jobs/{job_id}/resume", headers={"Idempotency-Key": "r"}).status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(ask, range(10))) == {200}
    states = [event["data"]["state"] for event in client.get(f"/jobs/{job_id}/events?format=json").json()["data"]]
    assert states == ["queued", "paused", "queued"]


def test_a_server_that_is_away_is_a_503_and_comes_back(client: TestClient, postgres: PostgresServer) -> None:
    postgres.stop()
    answer = client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
        503,
        "ledger_unavailable",
        "5",
    )
    assert client.get("/readyz").status_code == 503
    postgres.start()
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k"}).status_code == 201
    assert len(client.get("/jobs").json()["data"]) == 1
