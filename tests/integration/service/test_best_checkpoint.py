"""`<job>:best`, which stands for a job's checkpoint with the lowest validation loss."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
from starlette.testclient import TestClient

from core.checkpoints.manifest import Checkpoint
from jobs.tables import Job
from tests.integration.service.conftest import Hand, Save
from tests.integration.service.test_shelf import code_of, said_of, warning_in

LOSSES = {5: 2.0, 10: 1.5, 15: 1.7, 20: None}


@pytest.fixture
def job(submit: Callable[..., Job], hand: Hand) -> Job:
    submit()
    return hand.claim()


@pytest.fixture
def saved(job: Job, hand: Hand, save: Save) -> dict[int, Checkpoint]:
    """By their steps, as their worker told of them."""
    found = {step: save(step=step, job_id=job.id, run=job.id, val_loss=loss) for step, loss in LOSSES.items()}
    for item in found.values():
        kind, said = said_of(item)
        hand.say(job, (kind, {**said, "val_loss": item.manifest.val_loss}))
    return found


def test_it_is_the_one_with_the_lowest_loss_that_is_whole(
    client: TestClient, job: Job, saved: dict[int, Checkpoint]
) -> None:
    path = f"/checkpoints/{job.id}:best"
    assert client.get(path).json()["id"] == saved[10].manifest.id
    shutil.rmtree(saved[10].path)
    assert client.get(path).json()["id"] == saved[15].manifest.id


@pytest.mark.parametrize("ending", ["", ".pt"])
def test_a_run_goes_on_from_it(client: TestClient, job: Job, saved: dict[int, Checkpoint], ending: str) -> None:
    heir = client.post(f"/jobs/{job.id}:best{ending}/resume", json={"training_steps": 5}).json()
    assert (heir["parent"], heir["start_step"]) == (saved[10].manifest.id, 10)


def test_a_run_that_goes_on_from_the_second_best_says_why(
    client: TestClient, job: Job, saved: dict[int, Checkpoint]
) -> None:
    shutil.rmtree(saved[10].path)
    heir = client.post(f"/jobs/{job.id}:best/resume", json={"training_steps": 5}).json()
    second = saved[15].manifest
    assert heir["parent"] == second.id
    assert f"this run goes on from {second.id} (step 15) instead" in warning_in(client, heir["id"])


def test_one_that_only_the_disk_knows_is_taken_into_account(
    client: TestClient, job: Job, saved: dict[int, Checkpoint], hand: Hand, save: Save
) -> None:
    hand.finish(job)
    better = save(step=12, job_id=job.id, run=job.id, val_loss=1.0)
    assert client.get(f"/checkpoints/{job.id}:best").json()["id"] == better.manifest.id


def test_without_a_job_or_a_loss_there_is_none(client: TestClient, job: Job) -> None:
    answer = client.get(f"/checkpoints/{job.id}:best")
    assert answer.json()["detail"] == f"Job {job.id} has no checkpoint with a validation loss."
    assert code_of(client.get("/checkpoints/nobody:best")) == (404, "job_not_found")
