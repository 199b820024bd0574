from __future__ import annotations

import json
import math
from typing import Any

import pytest

from jobs import catalog, feed, lease, queue
from jobs.lease import Failed
from jobs.tables import Checkpoint, State

STEP = {"step": 3, "loss": 2.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 900.0, "memory_bytes": 7}
SAVED = {
    "step": 3,
    "id": "c1",
    "name": "checkpoint_from_scratch_tale_step000003_c1",
    "size_bytes": 10,
    "train_loss": 2.4,
    "val_loss": 2.6,
}


def test_events_are_numbered_on_from_the_last_one(session: Any, bring: Any, story: Any) -> None:
    job = bring(State.RUNNING)
    last = job.last_seq
    lines = [("log", {"line": str(number)}) for number in range(3)]
    assert feed.record(session, job.id, job.fence, lines) == last + 3
    assert [seq for seq, _, _ in story(job)] == list(range(1, last + 4))
    assert story(job)[-1] == (last + 3, "log", '{"line":"2"}')


def test_the_job_shows_what_the_latest_events_say(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    evaluated = ("eval", {"step": 3, "train_loss": 2.4, "val_loss": 2.6})
    feed.record(session, job.id, job.fence, [("step", {**STEP, "step": 2}), ("step", STEP), evaluated])
    session.refresh(job)
    assert (job.step, job.tokens_per_second, job.train_loss, job.val_loss) == (3, 900.0, 2.4, 2.6)


def test_a_loss_that_is_no_number_is_null_in_the_log_and_in_the_job(session: Any, bring: Any, story: Any) -> None:
    job = bring(State.RUNNING)
    feed.record(session, job.id, job.fence, [("step", {**STEP, "loss": math.nan, "grad_norm": math.inf})])
    session.refresh(job)
    assert job.train_loss is None
    assert json.loads(story(job)[-1][2])["loss"] is None


def test_a_resumed_run_stands_where_its_checkpoint_was(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    feed.record(session, job.id, job.fence, [("step", {**STEP, "step": 9})])
    feed.record(session, job.id, job.fence, [("resumed", {"attempt": 2, "from_step": 5, "checkpoint": "c0"})])
    session.refresh(job)
    assert job.step == 5


def test_started_makes_a_starting_job_running(session: Any, bring: Any, story: Any) -> None:
    job = bring(State.STARTING)
    feed.record(session, job.id, job.fence, [("log", {"line": "loading"}), ("started", {"start_step": 0})], now=4.0)
    session.refresh(job)
    assert (job.state, job.started_at) == (State.RUNNING, 4.0)
    assert [kind for _, kind, _ in story(job)] == ["state", "state", "state", "log", "started"]


def test_started_leaves_a_job_that_is_stopping_already(session: Any, bring: Any) -> None:
    job = bring(State.STOPPING)
    feed.record(session, job.id, job.fence, [("started", {})])
    session.refresh(job)
    assert job.state is State.STOPPING


def test_a_checkpoint_enters_the_catalog_with_its_event(session: Any, submit: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    job.parent_checkpoint, job.failures_in_a_row = "c0", 1
    session.flush()
    feed.record(session, job.id, job.fence, [("step", STEP), ("checkpoint", SAVED)], now=9.0)
    session.refresh(job)
    saved = catalog.find_checkpoint(session, "local", "c1")
    assert (job.checkpoint, job.failures_in_a_row) == ("c1", 0)
    assert (saved.job_id, saved.step, saved.attempt, saved.parent) == (job.id, 3, 1, "c0")
    assert (saved.path, saved.source, saved.model) == (SAVED["name"], "tale.md", "from_scratch")
    assert (saved.train_loss, saved.val_loss, saved.size_bytes, saved.created_at) == (2.4, 2.6, 10, 9.0)


@pytest.mark.parametrize("ids", [("c1", "c2"), ("c2", "c1")])
def test_of_two_checkpoints_told_at_once_the_later_is_the_newest(
    session: Any, bring: Any, ids: tuple[str, str]
) -> None:
    job = bring(State.RUNNING)
    told = [("checkpoint", {**SAVED, "id": ref, "name": ref, "step": step}) for step, ref in enumerate(ids, start=3)]
    feed.record(session, job.id, job.fence, told)
    listed, _ = catalog.list_checkpoints(session, "local", 10)
    assert [row.id for row in listed] == [ids[1], ids[0]]


def test_a_checkpoint_that_was_found_on_disk_first_keeps_its_pin(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    found = Checkpoint(id="c1", name=SAVED["name"], path=SAVED["name"], step=3, pinned=True, created_at=1.0)
    assert catalog.adopt_checkpoint(session, found)
    feed.record(session, job.id, job.fence, [("checkpoint", SAVED)])
    saved = catalog.find_checkpoint(session, "local", "c1")
    assert (saved.pinned, saved.job_id, saved.created_at) == (True, job.id, 1.0)


def test_later_events_carry_the_attempt_that_made_them(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    lease.retry(session, job.id, job.fence, Failed("crashed", "It crashed."), delay=0)
    queue.wake_due(session, now=1e12)
    again = queue.claim(session, "w2", now=1e12)
    last = feed.record(session, again.id, again.fence, [("log", {"line": "again"})])
    assert feed.after(session, again.id, last - 1)[0].attempt == 2


def test_no_events_are_no_news(session: Any, bring: Any) -> None:
    job = bring(State.RUNNING)
    assert feed.record(session, job.id, job.fence, []) == job.last_seq


@pytest.mark.parametrize(("seq", "limit", "numbers"), [(0, 2, [1, 2]), (2, 9, [3, 4]), (4, 9, [])])
def test_a_reader_goes_on_after_the_number_it_has(
    session: Any, bring: Any, seq: int, limit: int, numbers: list[int]
) -> None:
    job = bring(State.RUNNING)
    assert [event.seq for event in feed.after(session, job.id, seq, limit)] == numbers


def test_one_question_tells_where_many_logs_end(session: Any, submit: Any, bring: Any) -> None:
    running, queued = bring(State.RUNNING), submit()
    assert feed.tail_seqs(session, [running.id, queued.id, "job_gone"]) == {running.id: 4, queued.id: 1}
