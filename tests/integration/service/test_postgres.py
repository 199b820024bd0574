"""The service on a ledger that is on a server: the same answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from jobs.database import Database
from service.app import create_app
from service.settings import ServiceSettings
from tests.faults import ServiceProcess
from tests.integration.service.conftest import BODY, URL, Hand, Save
from tests.postgres import PostgresServer
from tests.proxy import Proxy


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
    assert client.post(f"/checkpoints/{saved.manifest.id}/pin").json()["pinned"]
    assert client.delete(f"/checkpoints/{saved.manifest.id}").json()["code"] == "checkpoint_pinned"
    assert not client.delete(f"/checkpoints/{saved.manifest.id}/pin").json()["pinned"]
    heir = client.post(f"/jobs/{job.id}/resume", json={"training_steps": 5})
    assert heir.status_code == 201
    assert client.delete(f"/checkpoints/{saved.manifest.id}").json()["code"] == "checkpoint_needed"
    client.post(f"/jobs/{heir.json()['id']}/cancel")
    assert client.delete(f"/jobs/{job.id}?checkpoints=true").status_code == 204
    assert client.get(f"/checkpoints/{saved.manifest.id}").json()["code"] == "checkpoint_removed"
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
    told = client.get(f"/jobs/{job_id}/events?format=json").json()["data"]
    states = [event["data"]["state"] for event in told if event["kind"] == "state"]
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


@pytest.mark.parametrize(
    "path",
    [
        *("/jobs/%00", "/jobs?source=%00", "/jobs?after=%00", "/jobs?metadata[k]=%00", "/jobs/%00/events"),
        *("/checkpoints/%00", "/checkpoints?job=%00"),
    ],
)
def test_no_character_that_the_database_refuses_is_the_services_fault(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in {404, 422}


def test_what_could_not_be_listed_is_not_taken_in(client: TestClient) -> None:
    assert client.post("/jobs", json={**BODY, "metadata": {"k": "a\0b"}}).status_code == 422
    assert client.post("/jobs", json={**BODY, "metadata": {"k\0": "a"}}).status_code == 422
    assert client.post("/generate", json={"checkpoint": "\0", "prompt": "a"}).status_code in {404, 422}
    assert client.get("/jobs", params={"metadata[k]": "a"}).json()["data"] == []


def test_one_key_for_two_jobs_at_once_lets_one_go_on(client: TestClient) -> None:
    jobs = [client.post("/jobs", json=BODY).json()["id"] for _ in range(2)]
    for job_id in jobs:
        client.post(f"/jobs/{job_id}/pause")

    def ask(job_id: str) -> int:
        return client.post(f"/jobs/{job_id}/resume", headers={"Idempotency-Key": "one"}).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(ask, jobs)) == [200, 422]


def test_moving_and_changing_and_removing_at_once_is_never_the_services_fault(client: TestClient) -> None:
    jobs = [client.post("/jobs", json=BODY).json()["id"] for _ in range(6)]

    def act(number: int) -> int:
        mine, other = jobs[number % 6], jobs[(number * 5 + 1) % 6]
        if number % 8 == 7:
            client.post(f"/jobs/{mine}/cancel")
            return client.delete(f"/jobs/{mine}").status_code
        return client.patch(f"/jobs/{mine}", json={"before": other, "name": f"n{number}"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(act, range(60))) <= {200, 204, 404, 409}


def test_a_service_whose_server_does_not_answer_still_ends_in_time(
    settings: ServiceSettings, postgres: PostgresServer, tmp_path: Path
) -> None:
    proxy = Proxy(postgres.port)
    server, _, name = settings.database_url.rpartition("/")
    away = f"{server.rpartition(':')[0]}:{proxy.port}/{name}"
    started = ServiceProcess(
        tmp_path, RATCHET_DATABASE_URL=away, RATCHET_SOURCES=str(settings.sources), RATCHET_POLL_SECONDS="0.05"
    )
    job_id = started.submit(BODY).json()["id"]
    with started.http.stream("GET", f"/jobs/{job_id}/events") as answer:
        text = answer.iter_lines()  # held: dropped, it would close the connection
        next(text)
        proxy.freeze()
        time.sleep(0.3)
        begun = time.monotonic()
        started.process.terminate()
        started.wait(12)
        assert time.monotonic() - begun < 10
    started.end()
    proxy.close()


def test_a_checkpoint_that_the_ledger_cannot_keep_spoils_no_list(client: TestClient, save: Save) -> None:
    first, odd, last = sorted((save(), save(), save()), key=lambda saved: saved.path.name)
    config = {**odd.manifest.config, "source": "tale\0.md"}
    (odd.path / "manifest.json").write_text(odd.manifest.model_copy(update={"config": config}).to_json())
    rows = client.get("/checkpoints").json()["data"]
    assert {row["id"] for row in rows} == {first.manifest.id, last.manifest.id}


def test_a_run_that_goes_on_from_an_earlier_checkpoint_than_asked_is_warned(client: TestClient, save: Save) -> None:
    earlier, cut = save(step=5), save(step=9)
    (cut.path / "model.safetensors").unlink()
    heir = client.post("/jobs/latest/resume").json()
    assert heir["parent"] == earlier.manifest.id
    events = client.get(f"/jobs/{heir['id']}/events?format=json").json()["data"]
    assert [(event["seq"], event["kind"]) for event in events] == [(1, "state"), (2, "warning")]
