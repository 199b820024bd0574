"""One attempt, with a process that the test makes up."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from core.checkpointing import CheckpointStore
from core.checkpoints.manifest import Checkpoint, new_manifest
from jobs import catalog, feed, queue
from jobs.database import Database
from jobs.queue import NewJob
from jobs.tables import Job, State
from worker.settings import WorkerSettings
from worker.supervisor import Supervisor


class Unkillable:
    """A process that a driver keeps: it says nothing and does not die."""

    pid = 1
    ended = False
    exit_code = None
    silent_seconds = 601.0
    tail = ("the last it said",)

    def assign(self, _: Any) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...
    def read(self, _: float) -> list[Any]:
        return []

    def stacks(self, _: float) -> list[str]:
        return []


@pytest.fixture
def job(db: Database) -> Job:
    with db.write() as session:
        queue.enqueue(session, NewJob("a", {}, 10))
        job = queue.claim(session, "w", 1.0)
    assert job
    return job


def attended(db: Database, job: Job, folder: Path, child: Any, **settings: Any) -> Job:
    Supervisor(db, job, WorkerSettings(data=folder, **settings), lambda: False, child).attend()
    with db.read() as session:
        return catalog.get_job(session, "local", job.id)


class Done(Unkillable):
    """A process that has made all its steps."""

    silent_seconds = 0.0

    def read(self, _: float) -> list[Any]:
        return [("outcome", {"outcome": "finished"})]


@pytest.fixture
def saved(job: Job, tmp_path: Path) -> list[Checkpoint]:
    """Three checkpoints of the job that the ledger does not know, the newest first."""
    store = CheckpointStore(tmp_path / "checkpoints")

    def publish(step: int) -> Checkpoint:
        manifest = new_manifest(model="m", source="s", step=step, end_step=10, config={}, job_id=job.id)
        return store.publish(manifest, lambda folder: (folder / "weights").write_bytes(bytes(1000)) and None)

    return [publish(step) for step in (3, 2, 1)]


def test_the_lease_is_kept_while_a_large_checkpoint_is_read(
    db: Database, job: Job, saved: list[Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.machine.disk.CHUNK_BYTES", 100)
    left = attended(db, job, tmp_path, Done, heartbeat_seconds=1e-9)
    assert left.state is State.SUCCEEDED
    assert left.heartbeat >= 10


def test_a_start_that_took_long_does_not_end_the_run(db: Database, job: Job, tmp_path: Path) -> None:
    def start() -> Any:
        supervisor._tenure.renewed_at -= 100
        return SlowlyDone()

    class SlowlyDone(Done):
        def read(self, seconds: float) -> list[Any]:
            time.sleep(0.1)
            return super().read(seconds)

    supervisor = Supervisor(db, job, WorkerSettings(data=tmp_path), lambda: False, start)
    supervisor.attend()
    with db.read() as session:
        assert catalog.get_job(session, "local", job.id).state is State.SUCCEEDED


def test_a_damaged_checkpoint_that_the_ledger_does_not_know_is_not_made_the_jobs_newest(
    db: Database, job: Job, saved: list[Checkpoint], tmp_path: Path
) -> None:
    (saved[0].path / "weights").write_bytes(bytes(999))
    left = attended(db, job, tmp_path, Done)
    assert left.checkpoint == saved[1].manifest.id
    with db.read() as session:
        said = [(event.kind, json.loads(event.data)) for event in feed.after(session, job.id, 0)]
    assert [data["step"] for kind, data in said if kind == "checkpoint"] == [1, 2]
    assert [saved[0].path.name in data["message"] for kind, data in said if kind == "warning"] == [True]


def test_a_process_that_cannot_even_be_killed_does_not_hold_its_job(db: Database, job: Job, tmp_path: Path) -> None:
    left = attended(db, job, tmp_path, Unkillable, hang_seconds=600)
    assert left.error is not None
    assert (left.state, left.error["code"]) == (State.RETRY_WAIT, "hung")
    with db.read() as session:
        said = [json.loads(event.data) for event in feed.after(session, job.id, 2)]
    assert [data.get("line") for data in said[:2]] == ["🧵 Where the hung process stood:", "  it did not answer"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BlockingIOError(11, "Resource temporarily unavailable"), "start_failed"),
        (OSError(5, "Input/output error", "/somewhere/on/this/machine"), "storage_error"),
    ],
)
def test_a_machine_that_cannot_start_a_process_now_is_given_another_chance(
    db: Database, job: Job, tmp_path: Path, error: OSError, code: str
) -> None:
    def fail() -> Any:
        raise error

    left = attended(db, job, tmp_path, fail)
    assert left.error is not None
    assert (left.state, left.error["code"]) == (State.RETRY_WAIT, code)
    assert "/somewhere" not in left.error["message"]


@pytest.mark.parametrize(("limit", "state"), [(1, State.FAILED), (2, State.RETRY_WAIT)])
def test_how_many_failures_in_a_row_end_a_job_is_a_setting(
    db: Database, job: Job, tmp_path: Path, limit: int, state: State
) -> None:
    assert attended(db, job, tmp_path, Unkillable, max_failures_in_a_row=limit).state is state


def test_the_wait_before_another_attempt_is_a_setting_and_doubles(db: Database, job: Job, tmp_path: Path) -> None:
    with db.write() as session:
        claimed = session.merge(job)
        claimed.failures_in_a_row = 2
        session.add(claimed)
    settings = {"retry_seconds": 3.0, "max_failures_in_a_row": 9}
    left = attended(db, claimed, tmp_path, Unkillable, **settings)
    with db.read() as session:
        waited_since = feed.after(session, job.id, 0)[-1].created_at
    assert left.run_after is not None
    assert left.run_after - waited_since == pytest.approx(12, abs=0.5)
