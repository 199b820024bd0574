"""A worker with real children: what it promises when things go well, and when they are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.checkpointing import CheckpointStore
from core.config import TrainingConfig, config_to_dict, parse
from jobs import catalog, queue
from jobs.queue import NewJob
from jobs.tables import State
from tests.integration.worker.conftest import FOREVER, TINY, Bench


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def final_weights(bench: Bench, job_id: str) -> dict[str, Any]:
    newest = CheckpointStore(bench.folder / "checkpoints").of_job(job_id)[0]
    return {name: tensor.tolist() for name, tensor in load_file(newest.path / "model.safetensors").items()}


def test_a_job_is_trained_and_its_log_has_no_gap(bench: Bench) -> None:
    job_id = bench.submit()
    bench.worker()
    job = bench.until_final(job_id)
    events = bench.events(job_id)
    assert (job.state, job.step, job.attempt) == (State.SUCCEEDED, 40, 1)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert [json.loads(e.data)["step"] for e in events if e.kind == "step"] == list(range(1, 41))
    assert [json.loads(e.data)["step"] for e in events if e.kind == "checkpoint"] == [10, 20, 30, 40]
    assert (events[-1].kind, events[-1].data) == ("done", '{"state":"succeeded"}')
    assert job.val_loss is not None
    assert job.tokens_per_second
    assert job.checkpoint == json.loads(next(e.data for e in reversed(events) if e.kind == "checkpoint"))["id"]


def test_a_waiting_child_takes_the_job_at_once_and_ends_with_its_worker(bench: Bench) -> None:
    worker = bench.worker(WARM_CHILD=True)
    waiting = bench.child_of(worker)
    bench.when(lambda: "tokenizers" in Path(f"/proc/{waiting}/maps").read_text())
    time.sleep(1)
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{waiting}/status").read_text())[1])  # type: ignore[index]
    assert resident < 400_000
    job_id = bench.submit(**FOREVER)
    bench.until_step(job_id, 1)
    assert bench.child_of(worker) == waiting
    bench.ask(queue.request_cancel, job_id)
    bench.until_final(job_id)
    bench.when(lambda: bench.child_of(worker) != waiting)
    next_one = bench.child_of(worker)
    worker.kill()
    worker.wait()
    bench.when(lambda: not alive(next_one), seconds=5)


def test_a_child_killed_in_the_middle_goes_on_and_ends_as_if_nothing_had_happened(bench: Bench) -> None:
    worker = bench.worker()
    killed = bench.submit("killed", training_steps=400, checkpoint_interval=50, eval_interval=400, dropout=0.1)
    bench.until_step(killed, 120)
    os.kill(bench.child_of(worker), signal.SIGKILL)
    job = bench.until_final(killed)
    events = bench.events(killed)
    assert (job.state, job.attempt) == (State.SUCCEEDED, 2)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    (resumed,) = [json.loads(event.data) for event in events if event.kind == "resumed"]
    assert resumed["from_step"] >= 100
    assert resumed["attempt"] == 2
    waits = [json.loads(e.data) for e in events if e.kind == "state" and "retry_wait" in e.data]
    assert waits[0]["error"]["code"] == "killed"
    twin = bench.submit("twin", training_steps=400, checkpoint_interval=400, eval_interval=400, dropout=0.1)
    bench.until_final(twin)
    assert final_weights(bench, killed) == final_weights(bench, twin)


def kill_with_its_child(bench: Bench, worker: subprocess.Popen[str]) -> None:
    child = bench.child_of(worker)
    worker.kill()
    worker.wait()
    bench.when(lambda: not alive(child), seconds=5)


def test_a_worker_killed_takes_its_child_along_and_another_goes_on(bench: Bench) -> None:
    job_id = bench.submit(training_steps=400, checkpoint_interval=50, eval_interval=400)
    first = bench.worker()
    bench.until_step(job_id, 60)
    kill_with_its_child(bench, first)
    bench.worker()
    job = bench.until_final(job_id)
    assert (job.state, job.attempt, job.fence) == (State.SUCCEEDED, 2, 2)
    assert any(event.kind == "resumed" for event in bench.events(job_id))


def test_what_a_killed_worker_published_and_never_said_is_found_and_damage_is_told(bench: Bench) -> None:
    job_id = bench.submit(training_steps=400, checkpoint_interval=50, eval_interval=400, keep_checkpoints=0)
    first = bench.worker()
    store = CheckpointStore(bench.folder / "checkpoints")
    bench.when(lambda: len(store.of_job(job_id)) >= 2)
    first.kill()
    first.wait()
    checkpoints = store.of_job(job_id)
    newest, before = checkpoints[0], checkpoints[1]
    with bench.db.write() as session:  # As if it had died before it could say so.
        for row in catalog.list_checkpoints(session, "local", 100, job_id=job_id)[0]:
            if row.name != newest.path.name:
                session.delete(row)
    (newest.path / "state.json").write_text("{}")
    (bench.folder / "checkpoints" / "checkpoint_gpt2_x_step000100_abc.pt").write_bytes(b"left by an older script")
    left = bench.folder / "checkpoints" / f"tmp-{job_id}-abc"
    left.mkdir()
    bench.worker()
    assert bench.until_final(job_id).state is State.SUCCEEDED
    events = [(event.kind, json.loads(event.data)) for event in bench.events(job_id)]
    assert [data["from_step"] for kind, data in events if kind == "resumed"] == [before.manifest.step]
    (warning,) = [data["message"] for kind, data in events if kind == "warning"]
    assert newest.path.name in warning
    with bench.db.read() as session:
        listed = {row.name for row in catalog.list_checkpoints(session, "local", 100, job_id=job_id)[0]}
    assert {item.path.name for item in checkpoints[1:]} <= listed
    assert not left.exists()


def test_a_run_that_crashed_before_its_first_checkpoint_says_that_it_begins_again(bench: Bench) -> None:
    job_id = bench.submit(training_steps=300, checkpoint_interval=300, eval_interval=300)
    worker = bench.worker()
    bench.until_step(job_id, 5)
    os.kill(bench.child_of(worker), signal.SIGKILL)
    bench.until_final(job_id)
    (resumed,) = [json.loads(event.data) for event in bench.events(job_id) if event.kind == "resumed"]
    assert resumed == {"attempt": 2, "from_step": 0, "checkpoint": None}


def test_a_job_whose_parent_is_gone_fails_and_does_not_begin_from_nothing(bench: Bench) -> None:
    with bench.db.write() as session:
        config = config_to_dict(parse(TrainingConfig, TINY))
        spec = NewJob("orphan", config, 10, start_step=100, parent_checkpoint="0123456789", resume_mode="extend")
        job_id = queue.enqueue(session, spec).job.id
    bench.worker()
    job = bench.until_final(job_id)
    assert job.error is not None
    assert (job.state, job.error["code"]) == (State.FAILED, "checkpoint_not_found")


def test_a_run_whose_checkpoint_is_damaged_goes_on_from_the_one_before_and_ends_where_it_was_to_end(
    bench: Bench,
) -> None:
    first = bench.submit()
    worker = bench.worker()
    bench.until_final(first)
    worker.terminate()
    assert worker.wait(timeout=20) == 0
    with bench.db.read() as session:
        parent, before = catalog.checkpoints_of(session, first)
    weights = bench.folder / "checkpoints" / parent.path / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    with bench.db.write() as session:
        config = config_to_dict(parse(TrainingConfig, {**TINY, "training_steps": 10}))
        spec = NewJob("heir", config, 10, start_step=40, parent_checkpoint=parent.id, resume_mode="exact")
        job_id = queue.enqueue(session, spec).job.id
    bench.worker()
    job = bench.until_final(job_id)
    assert (job.state, job.start_step, job.training_steps, job.step) == (State.SUCCEEDED, 30, 20, 50)
    log = bench.log_of(job_id)
    assert [data["step"] for kind, data in log if kind == "step"] == list(range(31, 51))
    (warning,) = [data["message"] for kind, data in log if kind == "warning" and "damaged" in data["message"]]
    assert parent.name in warning
    assert before.name in warning
    assert job.parent_checkpoint == before.id


def test_a_worker_that_finds_the_ledger_busy_waits_for_it(bench: Bench) -> None:
    job_id = bench.submit(training_steps=2)
    with bench.locked_ledger():
        worker = bench.worker()
        time.sleep(6.5)  # Longer than a transaction waits for its turn.
        assert worker.poll() is None
    assert bench.until_final(job_id).state is State.SUCCEEDED


def test_a_drained_worker_gives_its_job_back_uncharged_and_it_goes_on_from_there(bench: Bench) -> None:
    job_id = bench.submit(training_steps=400, checkpoint_interval=400, eval_interval=400)
    first = bench.worker()
    bench.until_step(job_id, 60)
    first.terminate()
    assert first.wait(timeout=20) == 0
    job = bench.job(job_id)
    assert (job.state, job.attempt) == (State.QUEUED, 0)
    assert job.checkpoint is not None, "what was trained was saved before the worker left"
    bench.worker()
    bench.until_final(job_id)
    (resumed,) = [json.loads(event.data) for event in bench.events(job_id) if event.kind == "resumed"]
    assert resumed["from_step"] >= 60


def test_a_worker_told_to_stop_while_its_child_starts_still_leaves_at_once(bench: Bench) -> None:
    job_id = bench.submit(**FOREVER)
    worker = bench.worker()
    bench.until(job_id, State.STARTING)
    worker.terminate()
    assert worker.wait(timeout=20) == 0
    assert (bench.job(job_id).state, bench.job(job_id).attempt) == (State.QUEUED, 0)


def test_a_cancelled_job_keeps_what_it_has_made(bench: Bench) -> None:
    job_id = bench.submit(**FOREVER)
    bench.worker()
    bench.until_step(job_id, 20)
    bench.ask(queue.request_cancel, job_id)
    job = bench.until_final(job_id)
    assert job.state is State.CANCELLED
    newest = CheckpointStore(bench.folder / "checkpoints").of_job(job_id)[0]
    assert newest.manifest.step == job.step


def test_a_job_cancelled_while_its_worker_is_dead_ends_cancelled_and_is_not_tried_again(bench: Bench) -> None:
    job_id = bench.submit(**FOREVER)
    first = bench.worker()
    bench.until_step(job_id, 1)
    kill_with_its_child(bench, first)
    bench.ask(queue.request_cancel, job_id)
    assert bench.job(job_id).state is State.RUNNING, "nobody has noticed yet"
    bench.worker()
    job = bench.until_final(job_id)
    assert (job.state, job.attempt, job.fence) == (State.CANCELLED, 1, 1)
    states = [data["state"] for kind, data in bench.log_of(job_id) if kind == "state"]
    assert states == ["queued", "starting", "running", "stopping", "cancelled"]


def test_a_paused_job_goes_on_at_the_step_where_it_stopped(bench: Bench) -> None:
    job_id = bench.submit(training_steps=400, checkpoint_interval=400, eval_interval=400)
    bench.worker()
    bench.until_step(job_id, 20)
    bench.ask(queue.request_pause, job_id)
    paused_at = bench.until(job_id, State.PAUSED).step
    bench.ask(queue.unpause, job_id)
    assert bench.until_final(job_id).state is State.SUCCEEDED
    steps = [json.loads(event.data)["step"] for event in bench.events(job_id) if event.kind == "step"]
    assert steps == list(range(1, 401)), f"nothing repeated or left out around {paused_at}"


def test_what_cannot_work_fails_once_in_one_sentence_and_the_worker_lives_on(bench: Bench) -> None:
    bad = {
        bench.submit("bad", source="gone.md"): "source_not_found",
        bench.submit("bad", model_type="gpt2", base_model="no/such"): "model_unavailable",
        bench.submit("bad", device="cuda:77"): "device_unavailable",
    }
    good = bench.submit("good")
    worker = bench.worker(MODELS=bench.folder / "models")
    for job_id, code in bad.items():
        job = bench.until_final(job_id)
        assert job.error is not None
        assert (job.state, job.attempt, job.error["code"]) == (State.FAILED, 1, code)
        assert "\n" not in job.error["message"]
    assert bench.until_final(good).state is State.SUCCEEDED
    assert worker.poll() is None


def test_a_poison_job_fails_after_its_second_crash_and_the_worker_lives_on(bench: Bench) -> None:
    # A checkpoints root that is a file: the child's very first save crashes, on every attempt.
    blocked = bench.folder / "blocked"
    blocked.write_text("not a folder")
    job_id = bench.submit()
    worker = bench.worker(CHECKPOINTS=blocked)
    job = bench.until_final(job_id)
    assert job.error is not None
    assert (job.state, job.attempt, job.error["code"]) == (State.FAILED, 2, "crashed")
    assert not any("Traceback" in event.data for event in bench.events(job_id)), "that is for the worker's own log"
    assert worker.poll() is None


def test_a_child_has_no_secret_in_its_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_API_KEY", "hush")
    job_id = bench.submit(**FOREVER)
    worker = bench.worker()
    bench.until_step(job_id, 1)
    environment = Path(f"/proc/{bench.child_of(worker)}/environ").read_text()
    assert "hush" not in environment
    assert "DATABASE" not in environment
