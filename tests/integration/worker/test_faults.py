"""What a worker makes of disks that are full, steps that hang, jobs that are poison, and being told to leave."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.checkpointing import CheckpointStore, verify
from jobs import queue
from jobs.tables import FINAL, State
from tests.conftest import PROJECT
from tests.faults import on_a_disk_of
from tests.integration.worker.conftest import FOREVER, Bench
from worker.__main__ import LEAVE_SECONDS


@pytest.fixture
def once(tmp_path: Path) -> Path:
    folder = tmp_path / "once"
    folder.mkdir()
    return folder


def test_a_full_disk_pauses_the_job_and_a_bad_moment_of_the_disk_is_tried_again(bench: Bench, once: Path) -> None:
    job_id = bench.submit()
    faults = "checkpoint.staged:error=ENOSPC@2;checkpoint.manifest:error=EIO@2"
    bench.worker(FAILPOINT=faults, FAILPOINT_ONCE=once, RETRY_SECONDS=0)
    job = bench.until(job_id, State.PAUSED)
    assert job.error is not None
    assert (job.error["code"], job.attempt) == ("disk_full", 0)
    assert "make room where the checkpoints are, then resume" in job.error["message"]
    assert str(bench.folder) not in job.error["message"]
    (kept,) = CheckpointStore(bench.folder / "checkpoints").of_job(job_id)
    verify(kept)
    bench.ask(queue.unpause, job_id)
    job = bench.until_final(job_id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert bench.errors_of(job_id) == ["disk_full", "storage_error"]
    resumed = [data["from_step"] for kind, data in bench.log_of(job_id) if kind == "resumed"]
    assert resumed == [kept.manifest.step, 20]


def test_a_disk_that_is_really_full_leaves_whole_checkpoints_and_a_job_that_goes_on(bench: Bench) -> None:
    disk = bench.folder / "checkpoints"
    disk.mkdir()
    ballast = 'head -c 600000 /dev/zero > "$0/ballast" && exec "$@"'
    job_id = bench.submit()
    worker = bench.worker(behind=[*on_a_disk_of("768k", disk), "sh", "-c", ballast, str(disk)])
    job = bench.until(job_id, State.PAUSED)
    assert job.error is not None
    assert job.error["code"] == "disk_full"
    inside = Path(f"/proc/{worker.pid}/root{disk}")
    kept = CheckpointStore(inside).of_job(job_id)
    assert kept
    for item in kept:
        verify(item)
    assert not list(inside.glob("tmp-*"))
    (inside / "ballast").unlink()
    bench.ask(queue.unpause, job_id)
    assert bench.until_final(job_id).state is State.SUCCEEDED
    log = bench.log_of(job_id)
    assert [data["from_step"] for kind, data in log if kind == "resumed"] == [kept[0].manifest.step]
    assert [data["step"] for kind, data in log if kind == "checkpoint"][-1] == 40


def test_a_run_that_hangs_is_ended_tells_where_it_stood_and_is_tried_again(bench: Bench, once: Path) -> None:
    job_id = bench.submit(eval_interval=1000)
    settings: dict[str, Any] = {"LEASE_SECONDS": 6, "RETRY_SECONDS": 0, "FAILPOINT_ONCE": once}
    bench.worker(HANG_SECONDS=6, FAILPOINT="child.begun:sleep=100;trainer.updating:sleep=100@15", **settings)
    job = bench.until(job_id, *FINAL, seconds=80)
    log = bench.log_of(job_id)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 3)
    assert bench.errors_of(job_id) == ["hung"] * 2
    assert [data["from_step"] for kind, data in log if kind == "resumed"] == [10]
    lines = [data["line"] for kind, data in log if kind == "log"]
    begins = [index for index, line in enumerate(lines) if line == "🧵 Where the hung process stood:"]
    preparing, training = lines[begins[0] : begins[1]], lines[begins[1] :]
    assert preparing[1].startswith("thread 1")
    assert any(line.startswith("  worker/child.py, line ") and line.endswith(" in train") for line in preparing)
    assert any(line.startswith("  core/trainer.py, line ") and line.endswith(" in update") for line in training)
    assert not any(str(PROJECT) in line or "site-packages" in line for line in lines)
    warnings = [data["message"] for kind, data in log if kind == "warning"]
    assert ["no progress for 6 s" in said for said in warnings] == [True, True]
    assert {kind for kind, _ in log}.isdisjoint({"pulse"})


def test_a_poison_job_fails_with_its_cause_beside_a_good_one(bench: Bench) -> None:
    # Whoever comes to a fourth evaluation ends at once, and only the first job has so many.
    bad = bench.submit("bad", eval_interval=3, training_steps=1000, checkpoint_interval=1000)
    good = bench.submit("good", training_steps=400, checkpoint_interval=400, eval_interval=400)
    worker = bench.worker(FAILPOINT="trainer.evaluating:exit=1@4", CAPACITY=2, RETRY_SECONDS=0)
    poisoned, done = bench.until_final(bad), bench.until_final(good)
    assert poisoned.error is not None
    assert (poisoned.state, poisoned.attempt) == (State.FAILED, 2)
    assert poisoned.error == {
        "code": "exited",
        "message": "The training process ended with exit code 1 and said nothing.",
    }
    assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
    assert poisoned.started_at
    assert done.started_at
    assert done.finished_at
    assert poisoned.started_at < done.finished_at, "both ran at once"
    assert worker.poll() is None
    with bench.db.read() as session:
        assert session.exec(text("SELECT capacity FROM worker")).all() == [(2,)]  # type: ignore[call-overload]


def test_a_job_that_is_poison_at_its_start_gives_way_to_the_next(bench: Bench) -> None:
    first, second = bench.submit("first"), bench.submit("second")
    worker = bench.worker(FAILPOINT="child.begun:exit=1", MAX_FAILURES_IN_A_ROW=1)
    for job_id in (first, second):
        assert bench.until_final(job_id).state is State.FAILED
        assert bench.errors_of(job_id) == ["exited"]
    assert worker.poll() is None


def test_told_to_leave_while_jobs_start_evaluate_and_save_a_worker_gives_all_back(bench: Bench, once: Path) -> None:
    jobs = [bench.submit(name, **{**FOREVER, "checkpoint_interval": 10}) for name in ("a", "b", "c")]
    sites = {"child.begun": 100, "trainer.evaluating": 4, "checkpoint.file": 4}
    faults = ";".join(f"{site}:sleep={seconds}" for site, seconds in sites.items())
    worker = bench.worker(CAPACITY=3, DRAIN_SECONDS=6, FAILPOINT=faults, FAILPOINT_ONCE=once)
    bench.when(lambda: {path.name for path in once.iterdir()} == set(sites))
    children = bench.children_of(worker)
    told = time.monotonic()
    worker.terminate()
    time.sleep(0.3)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=20) == 0
    assert time.monotonic() - told < 6 + 5
    for job_id in jobs:
        job = bench.job(job_id)
        assert (job.state, job.attempt, job.error) == (State.QUEUED, 0, None)
    warnings = [data["message"] for job_id in jobs for kind, data in bench.log_of(job_id) if kind == "warning"]
    assert ["step boundary within 6 s" in said for said in warnings] == [True], "one of them had to be ended"
    steps = [item.manifest.step for item in CheckpointStore(bench.folder / "checkpoints")]
    assert max(steps) >= 10, "a save that had begun was not thrown away"
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_a_worker_whose_ledger_is_stuck_still_leaves_in_time(bench: Bench) -> None:
    job_id = bench.submit(**FOREVER)
    worker = bench.worker(DRAIN_SECONDS=1)
    bench.until_step(job_id, 1)
    (child,) = bench.children_of(worker)
    with bench.locked_ledger():
        time.sleep(1)  # By then its main thread waits for the lock, in SQLite's own code.
        told = time.monotonic()
        worker.terminate()
        assert worker.wait(timeout=20) == -signal.SIGALRM, "it could not give its job back, so the kernel ended it"
        assert time.monotonic() - told < 1 + LEAVE_SECONDS + 1.5
    bench.when(lambda: not Path(f"/proc/{child}").exists(), seconds=5)


def test_a_worker_older_than_its_ledger_drains_and_says_what_to_do(bench: Bench) -> None:
    first = bench.submit(**FOREVER)
    log = bench.folder / "worker.log"
    worker = bench.worker(CAPACITY=2, log=log)
    bench.until_step(first, 1)
    with bench.db.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
    second = bench.submit()
    assert worker.wait(timeout=30) == 2
    assert "restart it with the release that migrated the ledger" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert (bench.job(first).state, bench.job(first).attempt) == (State.QUEUED, 0)
    assert (bench.job(second).state, bench.job(second).fence) == (State.QUEUED, 0)
