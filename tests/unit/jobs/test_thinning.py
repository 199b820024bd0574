from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import event

from jobs import feed, lease, queue
from jobs.lease import Succeeded
from jobs.tables import Job, State
from jobs.thinning import ENDS, thin

MANY = 10_000.0


@pytest.fixture
def ended(session: Any, submit: Any) -> Any:
    """A run of so many steps that ended at some moment."""

    def ended(num_steps: int, **told: Any) -> Job:
        submit(**{"training_steps": num_steps, **told})
        job = queue.claim(session, "w1", now=0.0)
        first = job.start_step + 1
        steps = [("step", {"step": step, "loss": 1.0}) for step in range(first, first + num_steps)]
        feed.record(session, job.id, job.fence, [("started", {}), *steps, ("log", {"line": "done"})])
        job = lease.finish(session, job.id, job.fence, Succeeded())
        session.refresh(job)
        return job

    return ended


def kinds(session: Any, job: Job) -> Counter[str]:
    return Counter(event.kind for event in feed.after(session, job.id, 0, limit=100_000))


def thin_all(session: Any, before: float, **told: Any) -> int:
    """How often there was something to do."""
    rounds = 0
    while thin(session, before, **told):
        rounds += 1
    return rounds


@pytest.mark.parametrize("num_steps", [199, 200, 205, 1000, 3000])
def test_a_curve_stays_and_nothing_but_steps_goes(session: Any, ended: Any, num_steps: int) -> None:
    job = ended(num_steps)
    before, log = kinds(session, job), feed.after(session, job.id, 0, limit=10_000)
    thin_all(session, job.finished_at + 1, kept_steps=100)
    after, left = kinds(session, job), feed.after(session, job.id, 0, limit=10_000)
    steps = after.pop("step")
    assert steps == num_steps if num_steps < 200 else 90 <= steps <= 200 + 2 * ENDS
    assert after == before - Counter(step=before["step"])
    numbers = [item.seq for item in left if item.kind == "step"]
    whole = [item.seq for item in log if item.kind == "step"]
    assert (numbers[0], numbers[-1]) == (whole[0], whole[-1])
    assert max(later - earlier for earlier, later in pairwise(numbers)) <= max(1, num_steps // 100)


def test_a_long_log_is_thinned_in_stretches_with_the_same_end(session: Any, ended: Any) -> None:
    jobs = [ended(1000), ended(1000)]
    moment = max(job.finished_at for job in jobs) + 1
    assert thin_all(session, moment, kept_steps=50, chunk=150) > 10
    sizes = [kinds(session, job)["step"] for job in jobs]
    assert sizes[0] == sizes[1] < 120


@pytest.mark.parametrize("told", [{"training_steps": 10_000_000}, {"training_steps": 3}, {"start_step": 100_000}])
def test_what_was_planned_and_what_was_made_before_do_not_count(session: Any, ended: Any, told: Any) -> None:
    job = ended(1000, **told)
    thin_all(session, job.finished_at + 1, kept_steps=100)
    assert 90 <= kinds(session, job)["step"] <= 200 + 2 * ENDS


def test_what_stays_keeps_its_number_and_its_words(session: Any, ended: Any) -> None:
    job = ended(1000)
    whole = {item.seq: item.data for item in feed.after(session, job.id, 0, limit=10_000)}
    last_seq = job.last_seq
    thin_all(session, job.finished_at + 1, kept_steps=10)
    session.refresh(job)
    left = feed.after(session, job.id, 0, limit=10_000)
    assert all(whole[item.seq] == item.data for item in left)
    assert (job.last_seq, job.thinned_seq, left[-1].seq) == (last_seq, last_seq, last_seq)


def test_a_reader_who_comes_back_for_what_is_gone_goes_on_behind_it(session: Any, ended: Any) -> None:
    job = ended(1000)
    thin_all(session, job.finished_at + 1, kept_steps=10)
    for seq in (0, 3, 500, 777):
        page = feed.after(session, job.id, seq, limit=5000)
        assert page[0].seq > seq
        assert page[-1].kind == "done"


def test_a_run_is_thinned_once(session: Any, ended: Any) -> None:
    ended(5), ended(5)
    assert thin(session, MANY**3)
    assert not thin(session, MANY**3)


def test_only_what_ended_long_ago_is_thinned(session: Any, ended: Any, bring: Any) -> None:
    job = ended(5)
    for state in (State.QUEUED, State.RUNNING, State.PAUSED, State.RETRY_WAIT):
        bring(state)
    assert not thin(session, job.finished_at)
    assert thin(session, job.finished_at + 1)


def test_finding_old_runs_reads_an_index(db: Any, session: Any, ended: Any) -> None:
    if db.url.startswith("postgresql"):
        return  # Its planner knows how small the table is, and reads it whole.
    heard: list[str] = []
    event.listen(db.writer, "before_cursor_execute", lambda _c, _d, statement, *_rest: heard.append(statement))
    thin(session, 0.0)
    (found,) = (statement for statement in heard if "thinned_seq" in statement)
    parameters = ["0"] * found.count("?")
    plan = [row[3] for row in session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {found}", tuple(parameters))]
    assert len(plan) == 1
    assert "ix_job_whole" in plan[0]
