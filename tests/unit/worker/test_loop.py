from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlmodel import select

from core.checkpoints.manifest import new_manifest
from jobs import catalog, feed, lease, queue
from jobs.database import Database
from jobs.errors import LedgerNewer, LedgerUnavailable
from jobs.lease import Succeeded
from jobs.queue import NewJob
from jobs.tables import Checkpoint, Job, State
from worker.gpus import Gpu
from worker.inference_process import InferenceProcess
from worker.loop import WorkerLoop
from worker.settings import WorkerSettings
from worker.slots import all_vacant
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


def never_answers(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next commit be done, and nobody hear of it."""
    write = loop.db.write

    @contextmanager
    def without_answer() -> Iterator[Any]:
        monkeypatch.setattr(loop.db, "write", write)
        with write() as session:
            yield session
        raise LedgerUnavailable("The connection broke after the commit.")

    monkeypatch.setattr(loop.db, "write", without_answer)


def first_of(loop: WorkerLoop) -> tuple[State, int, str | None, int]:
    with loop.db.read() as session:
        job = session.exec(select(Job).where(Job.name == "a")).one()
    return job.state, job.attempt, job.worker_id, job.fence


def test_a_job_whose_claim_got_no_answer_is_given_back_uncharged(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    never_answers(loop, monkeypatch)
    loop.fill()
    assert first_of(loop) == (State.STARTING, 1, loop.id, 1)
    assert loop.job_id is None
    loop.stop.set()
    never_answers(loop, monkeypatch)
    for _ in range(2):
        loop.fill()
        assert first_of(loop) == (State.QUEUED, 0, None, 1)
    (slot,) = loop.slots
    assert slot.reserve(), "its GPU is left to others"
    slot.vacate()


def test_a_job_that_is_starting_in_its_place_is_left_there(loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    (slot,) = loop.slots
    go_on = threading.Event()
    job = loop.claim(slot)
    assert job
    slot.begin(job, lambda: bool(go_on.wait(5)) or None, lambda: None)
    loop._strayed.set()
    loop.fill()
    assert first_of(loop) == (State.STARTING, 1, loop.id, 1)
    go_on.set()
    assert all_vacant(loop.slots, time.monotonic() + 5)


def test_a_job_that_could_not_be_started_while_the_ledger_was_away_is_given_back_uncharged(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any) -> None:
        raise LedgerUnavailable("The connection broke.")

    monkeypatch.setattr("worker.origin.checkpoint_ids", away)
    loop.fill()
    assert loop._woken.wait(5)
    assert first_of(loop) == (State.STARTING, 1, loop.id, 1)
    loop.stop.set()
    loop.fill()
    assert first_of(loop) == (State.QUEUED, 0, None, 1)


def test_a_machine_without_another_thread_to_give_costs_neither_the_worker_nor_the_job(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for _ in range(3):
        loop.fill()
        assert first_of(loop) == (State.QUEUED, 0, None, 1), "and it is not claimed again at once"
    (slot,) = loop.slots
    assert slot.job is None
    assert slot.reserve()
    slot.vacate()


def test_generation_that_cannot_be_started_again_is_no_reason_to_end(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    generation = InferenceProcess(loop.settings)
    loop.inference = generation
    generation._process.kill()
    generation._process.wait()
    with monkeypatch.context() as patched:
        patched.setattr("worker.inference_process.subprocess.Popen", refuse)
        for _ in range(2):
            loop.beat()
            assert generation.url is None
    loop.beat()
    assert generation.url
    loop.leave()
    loop.inference = None


def test_a_worker_that_seldom_looks_for_jobs_still_beats_and_leaves_at_once(tmp_path: Path) -> None:
    settings = WorkerSettings(
        data=tmp_path, inference=False, warm_child=False, claim_seconds=60, heartbeat_seconds=0.1, scan_seconds=60
    )
    loop = WorkerLoop(settings, StopSign(), [])
    thread = threading.Thread(target=loop.run)
    beats, looks = [], []
    loop.beat = lambda: beats.append(time.monotonic())  # type: ignore[method-assign]
    loop.fill = lambda: looks.append(time.monotonic())  # type: ignore[method-assign]
    thread.start()
    deadline = time.monotonic() + 20
    while len(beats) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    loop.stop.set()
    told = time.monotonic()
    thread.join(20)
    assert time.monotonic() - told < 3
    assert len(looks) == 1


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
        steps = [("step", {"step": step, "loss": 1.0}) for step in range(1, 5001)]
        feed.record(session, job.id, job.fence, [("started", {}), *steps])
        lease.finish(session, job.id, job.fence, Succeeded())
        session.execute(
            text("UPDATE job SET finished_at = :then, training_steps = 5000"), {"then": time.time() - 86_400 * 3}
        )

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


def test_what_a_killed_worker_only_marked_as_gone_is_removed_by_the_next_one(loop: WorkerLoop, tmp_path: Path) -> None:
    manifest = new_manifest(model="m", source="s", step=5, end_step=10, config={})
    saved = loop.store.publish(manifest, lambda folder: (folder / "weights").write_bytes(b"w") and None)
    told = {"id": manifest.id, "name": manifest.name, "path": manifest.name, "step": 5, "created_at": 1.0}
    with loop.db.write() as session:
        catalog.adopt_checkpoint(session, Checkpoint(**told, removed_at=2.0))
    loop.housekeeping()
    assert not saved.path.exists()
    assert loop._swept > 0, "and then seldom"


def test_a_folder_that_was_put_back_is_spoken_of_once(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("worker.loop.sweep", lambda *_: {"checkpoint_a"})
    with caplog.at_level(logging.WARNING):
        loop.sweep()
        loop.sweep()
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint checkpoint_a was removed, and its folder is there again; it is left alone"
    ]


def test_a_disk_that_cannot_be_read_is_no_reason_to_end(
    loop: WorkerLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> Any:
        raise OSError(5, "Input/output error")

    loop.store.root.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr("pathlib.Path.glob", refuse)
    with caplog.at_level(logging.WARNING):
        loop.housekeeping()
    assert "Input/output error" in caplog.text
