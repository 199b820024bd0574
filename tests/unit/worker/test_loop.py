from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from jobs import feed, lease, queue
from jobs.database import Database
from jobs.errors import LedgerNewer
from jobs.lease import Succeeded
from jobs.queue import NewJob
from worker.gpus import Gpu
from worker.loop import WorkerLoop
from worker.settings import WorkerSettings
from worker.stop import StopSign

GPU = Gpu(0, "GPU-a", "NVIDIA H100", "80 GiB")


@pytest.fixture
def loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerLoop]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    loop = WorkerLoop(WorkerSettings(data=tmp_path, inference=False, warm_child=False), StopSign(), [GPU])
    loop.begin()
    with loop.db.write() as session:
        for name in "ab":
            queue.enqueue(session, NewJob(name, {}, 10))
    yield loop
    loop.leave()


def test_a_gpu_that_the_ledger_knows_to_be_in_use_is_left_alone_until_it_is_free(
    loop: WorkerLoop, caplog: pytest.LogCaptureFixture
) -> None:
    (slot,) = loop.slots
    with loop.db.write() as session:
        held = queue.claim(session, "another", 1e12, device=GPU.uuid)
    assert held
    with caplog.at_level(logging.WARNING):
        assert [loop.claim(slot) for _ in range(3)] == [None] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "no job is taken for GPU GPU-a (NVIDIA H100): a job of another worker trains on it"
    ]
    with loop.db.write() as session:
        lease.finish(session, held.id, held.fence, Succeeded())
    job = loop.claim(slot)
    assert job
    assert (job.name, job.device, job.worker_id) == ("b", GPU.uuid, loop.id)
    slot.vacate()


def test_without_a_job_the_gpu_is_left_to_others(loop: WorkerLoop) -> None:
    (slot,) = loop.slots
    with loop.db.write() as session:
        for _ in range(2):
            queue.claim(session, "another", 1e12)
    assert loop.claim(slot) is None
    assert slot.reserve(), "nobody has it, this worker neither"
    slot.vacate()


def test_a_ledger_of_a_later_release_is_claimed_from_no_more(loop: WorkerLoop) -> None:
    (slot,) = loop.slots
    with loop.db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
    with pytest.raises(LedgerNewer, match="restart it with the release"):
        loop.fill()
    assert (slot.job, slot.reserve()) == (None, True)
    slot.vacate()


def test_once_told_to_stop_no_further_job_is_taken(loop: WorkerLoop) -> None:
    loop.stop.set()
    loop.fill()
    assert loop.job_id is None
    assert loop.anything_due()


def test_the_worker_says_how_many_jobs_it_trains_and_on_what(tmp_path: Path) -> None:
    settings = WorkerSettings(data=tmp_path, inference=False, warm_child=False, capacity=3)
    loop = WorkerLoop(settings, StopSign(), [GPU, GPU])
    loop.begin()
    database = Database(settings.database_url)
    with database.read() as session:
        capacity, devices = session.execute(text("SELECT capacity, devices FROM worker")).one()
    database.close()
    assert (capacity, devices.count("cuda: NVIDIA H100")) == (3, 2)
    loop.leave()


def test_the_logs_of_old_runs_are_thinned_if_the_operator_wants_that(loop: WorkerLoop) -> None:
    with loop.db.write() as session:
        job = queue.claim(session, "another", 1e12)
        steps = [("step", {"step": step, "loss": 1.0}) for step in range(5000)]
        feed.record(session, job.id, job.fence, [("started", {}), *steps])
        lease.finish(session, job.id, job.fence, Succeeded())
        session.execute(text("UPDATE job SET finished_at = :then"), {"then": time.time() - 86_400 * 3})

    def num_events() -> int:
        with loop.db.read() as session:
            return len(feed.after(session, job.id, 0, limit=10_000))

    whole = num_events()
    loop.housekeeping()
    assert num_events() == whole
    for days, gone in ((4, False), (2, True)):
        loop.settings = loop.settings.model_copy(update={"thin_events_days": days})
        loop._thin_at = 0.0
        loop.housekeeping()
        assert (num_events() < whole / 4) is gone
