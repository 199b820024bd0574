"""A worker with real children: what it promises when things go well, and when they are killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from core.checkpointing import CheckpointStore
from jobs import queue
from jobs.tables import State
from tests.integration.worker.conftest import FOREVER, Bench


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def final_weights(bench: Bench, job_id: str) -> dict[str, Any]:
    newest = CheckpointStore(bench.folder / "checkpoints").newest_of(job_id)
    assert newest is not None
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


def test_a_child_killed_in_the_middle_goes_on_and_ends_as_if_nothing_had_happened(bench: Bench) -> None:
    worker = bench.worker()
    killed = bench.submit("killed", training_steps=1200, checkpoint_interval=50, eval_interval=1200)
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
    twin = bench.submit("twin", training_steps=1200, checkpoint_interval=1200, eval_interval=1200)
    bench.until_final(twin)
    assert final_weights(bench, killed) == final_weights(bench, twin)


def test_a_worker_killed_takes_its_child_along_and_another_goes_on(bench: Bench) -> None:
    job_id = bench.submit(training_steps=1500, checkpoint_interval=50)
    first = bench.worker()
    bench.until_step(job_id, 60)
    child = bench.child_of(first)
    first.kill()
    first.wait()
    bench.when(lambda: not alive(child), seconds=5)
    bench.worker()
    job = bench.until_final(job_id)
    assert (job.state, job.attempt, job.fence) == (State.SUCCEEDED, 2, 2)
    assert any(event.kind == "resumed" for event in bench.events(job_id))


def test_a_drained_worker_gives_its_job_back_uncharged_and_it_goes_on_from_there(bench: Bench) -> None:
    job_id = bench.submit(training_steps=1500, checkpoint_interval=1500)
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
    newest = CheckpointStore(bench.folder / "checkpoints").newest_of(job_id)
    assert newest is not None
    assert newest.manifest.step == job.step


def test_a_paused_job_goes_on_at_the_step_where_it_stopped(bench: Bench) -> None:
    job_id = bench.submit(training_steps=1500, checkpoint_interval=1500)
    bench.worker()
    bench.until_step(job_id, 20)
    bench.ask(queue.request_pause, job_id)
    paused_at = bench.until(job_id, State.PAUSED).step
    bench.ask(queue.unpause, job_id)
    assert bench.until_final(job_id).state is State.SUCCEEDED
    steps = [json.loads(event.data)["step"] for event in bench.events(job_id) if event.kind == "step"]
    assert steps == list(range(1, 1501)), f"nothing repeated or left out around {paused_at}"


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"source": "gone.md"}, "source_not_found"),
        ({"model_type": "gpt2", "base_model": "no/such"}, "model_unavailable"),
        ({"device": "cuda:77"}, "device_unavailable"),
    ],
)
def test_what_cannot_work_fails_once_in_one_sentence_and_the_worker_lives_on(
    bench: Bench, given: dict[str, Any], code: str
) -> None:
    bad, good = bench.submit("bad", **given), bench.submit("good")
    worker = bench.worker(MODELS=bench.folder / "models")
    job = bench.until_final(bad)
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
    assert any("Traceback" in event.data for event in bench.events(job_id)), "the whole story is in the job's log"
    assert worker.poll() is None


def test_a_child_has_no_secret_in_its_environment(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_API_KEY", "hush")
    job_id = bench.submit(**FOREVER)
    worker = bench.worker()
    bench.until_step(job_id, 1)
    environment = Path(f"/proc/{bench.child_of(worker)}/environ").read_text()
    assert "hush" not in environment
    assert "DATABASE" not in environment
