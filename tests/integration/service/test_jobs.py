from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.checkpoints.manifest import Checkpoint
from jobs.tables import Job
from service.settings import ServiceSettings
from tests.integration.service.conftest import BODY, Hand, Serve

Finished = Callable[..., tuple[Job, Checkpoint]]

FIELDS = {
    *("id", "name", "state", "config", "step", "start_step", "training_steps", "attempt", "parent", "parent_job"),
    *("progress", "eta_seconds", "tokens_per_second", "train_loss", "val_loss", "error", "created_at", "started_at"),
    *("finished_at", "metadata", "priority", "diff", "mode", "events_url", "stop_requested", "run_after", "checkpoint"),
}


def test_a_job_is_taken_in_and_can_be_found(client: TestClient) -> None:
    answer = client.post("/jobs", json={**BODY, "learning_rate": 0.5, "metadata": {"team": "a"}})
    job = answer.json()
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/jobs/{job['id']}"
    assert set(job) == FIELDS
    assert (job["state"], job["name"], job["training_steps"]) == ("queued", "from_scratch tale", 20)
    assert (job["config"]["learning_rate"], job["config"]["block_size"]) == (0.5, 32)
    assert job["created_at"].endswith("Z")
    assert client.get(f"/jobs/{job['id']}").json() == job
    assert client.get("/jobs").json() == {"data": [job], "has_more": False}


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"model_type": ["gpt2"]}, "request_invalid", "model_type"),
        ({"model_type": {}}, "request_invalid", "model_type"),
        ({"lerning_rate": 1}, "request_invalid", "lerning_rate"),
        ({"n_embd": 30, "n_head": 4}, "request_invalid", "n_head"),
        ({"training_steps": 10**400}, "request_invalid", "training_steps"),
        ({"priority": 10**30}, "request_invalid", "priority"),
        ({"source": "gone.md"}, "source_not_found", "source"),
        ({"source": "../ratchet.db"}, "source_forbidden", "source"),
        ({"source": "a\x00b"}, "source_forbidden", "source"),
        ({"source": "/etc/passwd"}, "source_forbidden", "source"),
        ({"source": "empty.md"}, "source_empty", "source"),
        ({"source": "latin.md"}, "source_not_text", "source"),
        ({"block_size": 5000}, "source_too_short", "source"),
        ({"block_size": 5000, "model_type": "gpt2"}, "source_too_short", "source"),
        ({"base_model": "/root/secret"}, "model_forbidden", "base_model"),
        ({"base_model": "../up"}, "model_forbidden", "base_model"),
        ({"base_model": "a/b/c"}, "model_forbidden", "base_model"),
        ({"base_model": ".hidden"}, "model_forbidden", "base_model"),
    ],
)
def test_a_run_that_could_not_work_is_refused(
    client: TestClient, settings: ServiceSettings, changes: dict[str, Any], code: str, field: str
) -> None:
    (settings.sources / "empty.md").write_text(" \n")
    (settings.sources / "latin.md").write_bytes(b"caf\xe9")
    answer = client.post("/jobs", json={**BODY, **changes})
    problem = answer.json()
    assert answer.status_code == problem["status"] == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert (problem["code"], problem["errors"][0]["field"]) == (code, field)
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert problem["hint"]
    assert client.get("/jobs").json()["data"] == []


def test_a_source_with_one_block_and_one_token_more_is_enough(client: TestClient, settings: ServiceSettings) -> None:
    (settings.sources / "short.md").write_text("é" * 33)
    assert client.post("/jobs", json={**BODY, "source": "short.md", "block_size": 32}).status_code == 201
    refused = client.post("/jobs", json={**BODY, "source": "short.md", "block_size": 33}).json()
    assert "33" in refused["detail"]
    assert "34" in refused["detail"]


def test_the_operators_base_model_is_the_default_and_may_be_named(serve: Serve) -> None:
    client = serve(base_model="/models/ours")
    gpt2 = {**BODY, "model_type": "gpt2"}
    assert client.post("/jobs", json=gpt2).json()["config"]["base_model"] == "/models/ours"
    assert client.post("/jobs", json={**gpt2, "base_model": "/models/ours"}).status_code == 201
    assert client.post("/jobs", json={**gpt2, "base_model": "org/name-1.5B"}).status_code == 201
    assert client.post("/jobs", json={**gpt2, "base_model": "/models/theirs"}).status_code == 422
    assert client.post("/jobs", json=BODY).json()["config"]["base_model"] == "gpt2"


def test_a_full_queue_says_when_to_come_back(serve: Serve) -> None:
    client = serve(max_queued_jobs=1)
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k"}).status_code == 201
    answer = client.post("/jobs", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (429, "queue_full")
    assert int(answer.headers["retry-after"]) > 0
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": "k"}).headers["idempotency-replayed"]


def test_a_repeated_request_is_answered_with_the_first_ones_job(client: TestClient, settings: ServiceSettings) -> None:
    key = {"Idempotency-Key": "k1"}
    first = client.post("/jobs", json=BODY, headers=key)
    (settings.sources / "tale.md").unlink()
    again = client.post("/jobs", json=BODY, headers=key)
    other = client.post("/jobs", json={**BODY, "seed": 7}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"]
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_ten_repeats_at_once_make_one_job(client: TestClient) -> None:
    with ThreadPoolExecutor(10) as threads:
        sent = [threads.submit(client.post, "/jobs", json=BODY, headers={"Idempotency-Key": "k"}) for _ in range(10)]
        answers = [each.result() for each in sent]
    assert [answer.status_code for answer in answers] == [201] * 10
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 9
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(client.get("/jobs").json()["data"]) == 1


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_has_a_sane_length(client: TestClient, key: str) -> None:
    assert client.post("/jobs", json=BODY, headers={"Idempotency-Key": key}).status_code == 422


def test_jobs_are_listed_in_pages_and_by_what_they_are(client: TestClient, submit: Callable[..., Job]) -> None:
    ids = [submit(metadata={"n": str(n)}).id for n in range(3)]
    client.post(f"/jobs/{ids[0]}/cancel")

    def listed(**params: Any) -> list[str]:
        return [job["id"] for job in client.get("/jobs", params=params).json()["data"]]

    assert listed() == ids[::-1]
    assert listed(limit=2) == ids[:0:-1]
    assert client.get("/jobs?limit=2").json()["has_more"]
    assert listed(after=ids[1]) == [ids[0]]
    assert listed(state="cancelled") == [ids[0]]
    assert set(listed(state=["cancelled", "queued"])) == set(ids)
    assert listed(source="other.md") == listed(model="gpt2") == []
    assert listed(**{"metadata[n]": "1"}) == [ids[1]]


def test_a_list_is_not_upset_by_what_it_is_asked(client: TestClient) -> None:
    for query in ("limit=0", "limit=201", f"limit={10**30}", "limit=x", "state=sleeping", "state=%00"):
        assert client.get(f"/jobs?{query}").status_code == 422
    for after in (10**30, "%00", "%ff"):
        assert client.get(f"/jobs?after={after}").status_code == 404
    assert client.get("/jobs?source=%ff%00&metadata[%00]=%00&metadata[]=&metadata[=").status_code == 200


@pytest.mark.parametrize("action", ["GET ", "GET events", "POST cancel", "POST pause", "POST resume", "DELETE "])
def test_a_job_that_is_not_there_is_a_404(client: TestClient, action: str) -> None:
    method, _, tail = action.partition(" ")
    for job_id in ("nope", "%00", "%ff", "job_" + "x" * 4000, "' OR 1=1 --", "%F0%9F%92%A5"):
        answer = client.request(method, f"/jobs/{job_id}/{tail}".rstrip("/"))
        assert answer.status_code == answer.json()["status"] == 404


def test_a_queued_job_is_cancelled_at_once_and_stays_so(client: TestClient, submit: Callable[..., Job]) -> None:
    path = f"/jobs/{submit().id}"
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    assert client.post(f"{path}/cancel").json()["state"] == "cancelled"
    refused = client.post(f"{path}/pause")
    assert (refused.status_code, refused.json()["code"]) == (409, "illegal_transition")


def test_a_running_job_is_asked_to_stop(client: TestClient, submit: Callable[..., Job], hand: Hand) -> None:
    submit()
    job = hand.claim()
    assert client.get(f"/jobs/{job.id}").json()["stop_requested"] is None
    for verb in ("pause", "cancel"):
        answer = client.post(f"/jobs/{job.id}/{verb}")
        assert (answer.status_code, answer.json()["state"], answer.json()["stop_requested"]) == (200, "running", verb)


def test_the_newest_job_can_be_looked_at_but_not_steered_by_that_name(
    client: TestClient, submit: Callable[..., Job]
) -> None:
    job = submit()
    assert client.get("/jobs/latest").json()["id"] == job.id
    for verb in ("cancel", "pause"):
        assert client.post(f"/jobs/latest/{verb}").status_code == 404
    assert client.get(f"/jobs/{job.id}").json()["state"] == "queued"


def test_progress_shows_what_the_run_said(client: TestClient, submit: Callable[..., Job], hand: Hand) -> None:
    submit()
    job = hand.claim()
    hand.say(job, ("step", {"step": 5, "loss": 3.5, "tokens_per_second": 64.0}), ("eval", {"step": 5, "val_loss": 3.0}))
    shown = client.get(f"/jobs/{job.id}").json()
    assert (shown["state"], shown["step"], shown["progress"]) == ("running", 5, 0.25)
    assert (shown["train_loss"], shown["val_loss"], shown["eta_seconds"]) == (3.5, 3.0, 30.0)


def test_name_priority_and_metadata_may_change_later(client: TestClient, submit: Callable[..., Job]) -> None:
    path = f"/jobs/{submit(metadata={'a': '1'}).id}"
    changed = client.patch(path, json={"name": "new", "priority": 3}).json()
    assert (changed["name"], changed["priority"], changed["metadata"]) == ("new", 3, {"a": "1"})
    assert client.patch(path, json={"metadata": {}}).json()["metadata"] == {}
    assert client.patch(path, json={"state": "succeeded"}).status_code == 422
    assert client.patch("/jobs/nope", json={}).status_code == 404


def test_only_a_job_that_has_ended_can_be_removed(client: TestClient, finished: Finished) -> None:
    job, saved = finished()
    assert client.delete(f"/jobs/{job.id}").status_code == 204
    assert client.get(f"/jobs/{job.id}").status_code == 404
    assert client.get(f"/checkpoints/{saved.manifest.id}").json()["job_id"] is None


def test_a_job_at_work_is_not_removed(client: TestClient, submit: Callable[..., Job]) -> None:
    answer = client.delete(f"/jobs/{submit().id}")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_busy")


def test_a_job_waits_for_the_moment_it_was_given(client: TestClient, hand: Hand) -> None:
    later = client.post("/jobs", json={**BODY, "run_after": "2999-01-01T00:00:00+01:00"}).json()
    assert later["run_after"] == "2998-12-31T23:00:00.000Z"
    past = client.post("/jobs", json={**BODY, "run_after": 1_000_000_000}).json()
    assert hand.claim().id == past["id"]
    assert client.get(f"/jobs/{later['id']}").json()["state"] == "queued"


@pytest.mark.parametrize("moment", ["soon", "2999-01-01T00:00:00", True, [1]])
def test_a_moment_that_is_none_is_refused(client: TestClient, moment: Any) -> None:
    answer = client.post("/jobs", json={**BODY, "run_after": moment})
    assert answer.status_code == 422
    assert [item["field"] for item in answer.json()["errors"]] == ["run_after"]


def test_the_line_is_seen_and_changed(client: TestClient, submit: Callable[..., Job], hand: Hand) -> None:
    first, second, third = (submit(name=name, priority=1) for name in ("first", "second", "third"))

    def line() -> list[str]:
        return [job["name"] for job in client.get("/jobs", params={"order": "line"}).json()["data"]]

    assert line() == ["first", "second", "third"]
    moved = client.patch(f"/jobs/{third.id}", json={"before": first.id, "name": "hasty"})
    assert moved.json()["name"] == "hasty"
    assert line() == ["hasty", "first", "second"]
    held = hand.claim()
    assert (held.id, line()) == (third.id, ["first", "second"])
    refused = client.patch(f"/jobs/{second.id}", json={"before": held.id})
    assert (refused.status_code, refused.json()["code"]) == (409, "job_busy")
    assert client.patch(f"/jobs/{second.id}", json={"before": "job_gone"}).status_code == 404
    assert client.patch(f"/jobs/{second.id}", content=rb'{"before":"\ud800"}').status_code == 422
    mixed = client.get("/jobs", params={"order": "line", "state": "failed"})
    assert (mixed.status_code, mixed.json()["code"]) == (422, "filter_unfit")
    assert client.patch(f"/jobs/{second.id}", json={"before": first.id, "priority": 2}).status_code == 422
