from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

from core.checkpoints.manifest import Checkpoint
from jobs import feed
from jobs.database import Database
from jobs.tables import Job
from tests.integration.service.conftest import Hand

Finished = Callable[..., tuple[Job, Checkpoint]]


def step(number: int, loss: float = 2.0) -> feed.Said:
    more = {"lr": 0.1, "grad_norm": 1.5, "tokens_per_second": 100.0, "memory_bytes": 7, "mfu": 0.5}
    return ("step", {"step": number, "loss": loss, **more})


@pytest.fixture
def job(submit: Callable[..., Job], hand: Hand) -> Job:
    """At its twelfth step, in its second attempt, which began at the tenth."""
    submit()
    job = hand.claim()
    hand.say(job, ("eval", {"step": 0, "train_loss": 4.0, "val_loss": 5.0}), *(step(n) for n in range(1, 20)))
    hand.say(job, ("resumed", {"attempt": 2, "from_step": 10, "checkpoint": "c"}), step(11, 3.0), step(12, 3.0))
    told = {"train_loss": 1.0, "val_loss": 1.5, "val_accuracy": 0.6, "val_perplexity": 4.5}
    hand.say(job, ("eval", {"step": 12, **told}))
    return job


def test_a_jobs_curve_as_json(client: TestClient, job: Job) -> None:
    answer = client.get(f"/jobs/{job.id}/metrics")
    curve = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert [(point["step"], point["loss"]) for point in curve["points"]] == [
        *((number, 2.0) for number in range(1, 11)),
        (11, 3.0),
        (12, 3.0),
    ]
    pace = {"tokens_per_second": 100.0, "memory_bytes": 7, "mfu": 0.5}
    assert curve["points"][0] == {"step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.5, **pace}
    assert curve["evaluations"] == [
        {"step": 0, "train_loss": 4.0, "val_loss": 5.0, "val_accuracy": None, "val_perplexity": None},
        {"step": 12, "train_loss": 1.0, "val_loss": 1.5, "val_accuracy": 0.6, "val_perplexity": 4.5},
    ]
    assert curve["segments"] == [{"job": job.id, "from_step": 0, "to_step": 12, "checkpoint": None, "mode": None}]
    assert (curve["missing"], curve["downsampled"]) == (None, False)


@pytest.mark.parametrize(
    ("query", "accept", "is_csv"),
    [
        ("?format=csv", "*/*", True),
        ("", "text/csv", True),
        ("", "text/html, text/csv;q=0.5", True),
        ("?format=json", "text/csv", False),
        ("", "*/*", False),
    ],
)
def test_csv_is_asked_for_by_accept_or_by_format(
    client: TestClient, job: Job, query: str, accept: str, is_csv: bool
) -> None:
    answer = client.get(f"/jobs/{job.id}/metrics{query}", headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("text/csv" if is_csv else "application/json")


def test_csv_has_a_row_for_each_step_that_was_made_or_measured(client: TestClient, job: Job) -> None:
    answer = client.get(f"/jobs/{job.id}/metrics?format=csv")
    assert answer.headers["content-disposition"] == f'attachment; filename="{job.id}.csv"'
    lines = answer.text.split("\n")
    assert lines[0] == (
        "step,loss,lr,grad_norm,tokens_per_second,memory_bytes,mfu,train_loss,val_loss,val_accuracy,val_perplexity"
    )
    assert lines[1] == "0,,,,,,,4.0,5.0,,"
    assert lines[2] == "1,2.0,0.1,1.5,100.0,7,0.5,,,,"
    assert lines[13] == "12,3.0,0.1,1.5,100.0,7,0.5,1.0,1.5,0.6,4.5"
    assert [int(row["step"]) for row in csv.DictReader(lines)] == list(range(13))


def test_as_few_points_as_are_asked_for_or_only_the_newest(client: TestClient, job: Job) -> None:
    path = f"/jobs/{job.id}/metrics"
    few = client.get(f"{path}?points=10").json()
    assert len(few["points"]) <= 10
    assert few["downsampled"]
    new = client.get(f"{path}?after_step=11").json()
    assert ([point["step"] for point in new["points"]], len(new["evaluations"])) == ([12], 1)


@pytest.mark.parametrize("query", ["points=9", "points=20001", "points=x", "after_step=-1", "format=xml"])
def test_what_cannot_be_asked_for_is_said(client: TestClient, job: Job, query: str) -> None:
    answer = client.get(f"/jobs/{job.id}/metrics?{query}")
    assert (answer.status_code, answer.json()["code"]) == (422, "request_invalid")


def test_a_loss_that_is_no_number_leaves_as_null(client: TestClient, submit: Any, hand: Hand) -> None:
    submit()
    job = hand.claim()
    hand.say(job, step(1, float("nan")))
    assert client.get("/jobs/latest/metrics").json()["points"][0]["loss"] is None


def test_one_curve_over_a_run_and_what_it_went_on_from(
    client: TestClient, finished: Finished, hand: Hand, ledger: Database
) -> None:
    first, saved = finished()
    answer = client.post(f"/jobs/{saved.manifest.id}/resume", json={"training_steps": 5, "learning_rate": 0.5})
    child = answer.json()
    assert (child["parent"], child["parent_job"]) == (saved.manifest.id, first.id)
    job = hand.claim()
    hand.say(job, ("resumed", {"attempt": 1, "from_step": 20, "checkpoint": "c"}), step(21, 1.0), step(22, 1.0))
    curve = client.get(f"/jobs/{job.id}/metrics?lineage=true").json()
    assert [(point["step"], point["loss"]) for point in curve["points"]] == [(20, 2.0), (21, 1.0), (22, 1.0)]
    parts = [
        {"job": first.id, "from_step": 0, "to_step": 20, "checkpoint": None, "mode": None},
        {"job": job.id, "from_step": 20, "to_step": 22, "checkpoint": saved.manifest.id, "mode": "extend"},
    ]
    assert (curve["segments"], curve["missing"]) == (parts, None)
    assert len(client.get(f"/jobs/{job.id}/metrics").json()["segments"]) == 1

    assert client.delete(f"/jobs/{first.id}").status_code == 204
    curve = client.get(f"/jobs/{job.id}/metrics?lineage=true").json()
    assert curve["segments"] == parts[1:]
    assert curve["missing"] == {"job": first.id, "checkpoint": saved.manifest.id, "before_step": 20, "is_cut": False}


def test_another_owners_curve_is_not_there(client: TestClient, job: Job, ledger: Database) -> None:
    with ledger.write() as session:
        row = session.get(Job, job.id)
        assert row is not None
        row.owner = "another"
        session.add(row)
    assert client.get(f"/jobs/{job.id}/metrics").status_code == 404
    assert client.get("/jobs/job_nothing/metrics").json()["code"] == "job_not_found"


def test_the_first_event_of_a_resumed_run_says_what_differs(client: TestClient, finished: Finished) -> None:
    _, saved = finished()
    answer = client.post(f"/jobs/{saved.manifest.id}/resume", json={"learning_rate": 0.5, "mode": "warm_start"})
    job = answer.json()
    (first,) = client.get(f"/jobs/{job['id']}/events?format=json").json()["data"]
    told = {"mode": "warm_start", "parent": saved.manifest.id, "diff": job["diff"]}
    assert first["data"] == {"state": "queued", "attempt": 0, **told}
    assert [item["field"] for item in job["diff"]] == ["learning_rate"]


def test_a_checkpoint_tells_its_lineage(client: TestClient, finished: Finished, ledger: Database, hand: Hand) -> None:
    job, saved = finished()
    grandparent = saved.manifest
    told = {"parent_job": job.id, "parent_checkpoint": grandparent.id, "resume_mode": "extend"}
    child, parent = finished(**told)
    told = {"parent_job": child.id, "parent_checkpoint": parent.manifest.id, "resume_mode": "warm_start"}
    youngest = finished(**told)[1].manifest
    assert client.delete(f"/checkpoints/{parent.manifest.id}").status_code == 204
    lineage = client.get(f"/checkpoints/{youngest.id}").json()["lineage"]
    assert [link["id"] for link in lineage] == [youngest.id, parent.manifest.id, grandparent.id]
    assert [link["mode"] for link in lineage] == ["warm_start", "extend", None]
    assert [link["removed"] for link in lineage] == [False, True, False]
    assert all(link["known"] for link in lineage)
    one = lineage[2]
    assert (one["name"], one["step"], one["job_id"]) == (grandparent.name, 20, job.id)
    assert one["created_at"].endswith("Z")


def test_a_parent_that_nobody_knows_is_said_to_be_unknown(client: TestClient, finished: Finished) -> None:
    saved = finished(parent_checkpoint="gone", resume_mode="extend")[1].manifest
    link = client.get(f"/checkpoints/{saved.id}").json()["lineage"][1]
    assert link == {
        **{"id": "gone", "known": False, "name": None, "step": None, "job_id": None, "mode": None},
        **{"created_at": None, "removed": False},
    }


def test_a_paused_job_that_goes_on_otherwise_says_so_in_its_log(client: TestClient, submit: Callable[..., Job]) -> None:
    job = submit()
    client.post(f"/jobs/{job.id}/pause")
    resumed = client.post(f"/jobs/{job.id}/resume", json={"learning_rate": 0.5}).json()
    last = client.get(f"/jobs/{job.id}/events?format=json").json()["data"][-1]["data"]
    assert (last["state"], last["diff"]) == ("queued", resumed["diff"])
    assert [item["field"] for item in last["diff"]] == ["learning_rate"]


def test_only_so_many_curves_are_drawn_at_the_same_time(client: TestClient, job: Job) -> None:
    path = f"/jobs/{job.id}/metrics"
    client.app.state.curves = anyio.Semaphore(1)  # type: ignore[attr-defined]  # the application's own
    answers = [client.get(path + query) for query in ("", "?format=csv", "?points=0", "")]
    assert [answer.status_code for answer in answers] == [200, 200, 422, 200]
    client.app.state.curves = anyio.Semaphore(0)  # type: ignore[attr-defined]  # the application's own
    answer = client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_at_once")
    assert answer.headers["retry-after"]
