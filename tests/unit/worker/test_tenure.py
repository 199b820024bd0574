"""What the holder of a job writes, against a real ledger whose answers get lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlmodel import Session

from jobs import catalog, feed, lease, queue
from jobs.database import Database
from jobs.errors import LeaseLost, LedgerUnavailable
from jobs.lease import Failed, Succeeded
from jobs.queue import NewJob
from jobs.tables import Job, State
from worker.settings import WorkerSettings
from worker.tenure import Tenure

LANDED, LOST = "landed", "lost"


class Flaky(Database):
    """Its next commits are done, and then nobody hears of it; or are not done at all."""

    outages: tuple[str, ...] = ()

    @contextmanager
    def write(self) -> Iterator[Session]:
        outage, self.outages = (self.outages or ("",))[0], self.outages[1:]
        with super().write() as session:
            yield session
            if outage == LOST:
                raise LedgerUnavailable("The connection broke before the commit.")
        if outage == LANDED:
            raise LedgerUnavailable("The connection broke after the commit.")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Flaky]:
    db = Flaky(f"sqlite:///{tmp_path / 'ratchet.db'}")
    db.migrate()
    yield db
    db.close()


@pytest.fixture
def tenure(db: Flaky, tmp_path: Path) -> Tenure:
    with db.write() as session:
        queue.enqueue(session, NewJob("a", {}, 10))
        job = queue.claim(session, "w", 1.0)
    assert job
    settings = WorkerSettings(data=tmp_path, lease_seconds=30, heartbeat_seconds=1e-9, stop_poll_seconds=1e-9)
    return Tenure(db, job, settings)


def job_of(tenure: Tenure) -> Job:
    with tenure.db.read() as session:
        return catalog.get_job(session, "local", tenure.job.id)


def log_of(tenure: Tenure) -> list[Any]:
    """Each event in short, under numbers without gap or repeat."""
    with tenure.db.read() as session:
        events = feed.after(session, tenure.job.id, 0)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    data = [json.loads(event.data) for event in events]
    return [said.get("line") or said.get("state") or event.kind for said, event in zip(data, events, strict=True)]


def say(tenure: Tenure, *lines: str) -> None:
    for line in lines:
        tenure.say("log", {"line": line})


@pytest.mark.parametrize("outages", [(LANDED,), (LOST,), (LANDED, LOST), (LOST, LANDED), (LANDED, LANDED, LOST)])
def test_a_batch_whose_commit_got_no_answer_is_written_exactly_once(
    tenure: Tenure, db: Flaky, outages: tuple[str, ...]
) -> None:
    db.outages = outages
    lines = []
    for line in "abcde":
        say(tenure, line, line * 2)
        lines += [line, line * 2]
        tenure.record()
    assert log_of(tenure) == ["queued", "starting", *lines]
    assert tenure.pending == []


@pytest.mark.parametrize("outage", [LANDED, LOST])
def test_what_is_pending_and_the_end_are_written_exactly_once(tenure: Tenure, db: Flaky, outage: str) -> None:
    say(tenure, "a")
    db.outages = (outage,)
    tenure.record()
    say(tenure, "b")
    state = tenure.conclude(lambda session: lease.finish(session, tenure.job.id, tenure.job.fence, Succeeded()))
    assert state is State.SUCCEEDED
    assert log_of(tenure) == ["queued", "starting", "a", "b", "running", "succeeded", "succeeded"]


@pytest.mark.parametrize(
    "outcome", [lambda *held: lease.finish(*held, Succeeded()), lambda *held: lease.retry(*held, Failed("a", "b"), 1)]
)
def test_an_end_whose_commit_got_no_answer_is_not_written_again(tenure: Tenure, db: Flaky, outcome: Any) -> None:
    say(tenure, "a")
    db.outages = (LANDED,)
    state = tenure.conclude(lambda session: outcome(session, tenure.job.id, tenure.job.fence))
    assert state is job_of(tenure).state
    ends = {State.SUCCEEDED: ["running", "succeeded", "succeeded"], State.RETRY_WAIT: ["retry_wait"]}
    assert log_of(tenure) == ["queued", "starting", "a", *ends[job_of(tenure).state]]


def test_an_end_that_found_another_holder_has_not_landed(
    tenure: Tenure, db: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_over(_: float) -> None:
        with db.write() as session:
            lease.release(session, tenure.job.id, tenure.job.fence)
            queue.claim(session, "w2", 1e12)

    monkeypatch.setattr("worker.tenure.time.sleep", take_over)
    db.outages = (LOST,)
    with pytest.raises(LeaseLost):
        tenure.conclude(lambda session: lease.finish(session, tenure.job.id, tenure.job.fence, Succeeded()))
    assert log_of(tenure) == ["queued", "starting", "queued", "starting"]


@pytest.mark.parametrize("outage", [LANDED, LOST])
def test_a_stop_whose_answer_was_lost_is_acknowledged_once(tenure: Tenure, db: Flaky, outage: str) -> None:
    with db.write() as session:
        queue.request_cancel(session, tenure.job)
    db.outages = (outage,)
    say(tenure, "a")
    assert not tenure.stop_requested()
    say(tenure, "b")
    assert tenure.stop_requested()
    tenure.record()
    assert log_of(tenure) == [
        "queued",
        "starting",
        *(["a", "stopping", "b"] if outage == LANDED else ["a", "b", "stopping"]),
    ]


def test_a_beat_whose_answer_was_lost_writes_nothing_twice(tenure: Tenure, db: Flaky) -> None:
    db.outages = (LANDED,)
    say(tenure, "a")
    tenure.renew_if_due()
    say(tenure, "b")
    tenure.renew_if_due()
    assert log_of(tenure) == ["queued", "starting", "a", "b"]


def test_nobody_but_the_holder_adds_to_a_log_while_a_person_asks_for_this_and_that(tenure: Tenure, db: Flaky) -> None:
    db.outages = (LANDED,)
    say(tenure, "a")
    tenure.record()
    with db.write() as session:
        queue.request_pause(session, tenure.job)
        queue.unpause(session, tenure.job)
    say(tenure, "b")
    tenure.record()
    assert log_of(tenure) == ["queued", "starting", "a", "b"]


def test_a_ledger_that_stays_away_costs_the_job_before_another_may_take_it(tenure: Tenure, db: Flaky) -> None:
    db.outages = (LOST,) * 3
    say(tenure, "a")
    tenure.record()
    tenure.renewed_at -= tenure.settings.self_fence_seconds
    with pytest.raises(LeaseLost):
        tenure.record()


def test_a_job_that_another_holds_by_now_gets_nothing_of_ours(tenure: Tenure, db: Flaky) -> None:
    db.outages = (LANDED,)
    say(tenure, "a")
    tenure.record()
    with db.write() as session:
        lease.release(session, tenure.job.id, tenure.job.fence)
        queue.claim(session, "w2", 1e12)
    say(tenure, "b")
    with pytest.raises(LeaseLost):
        tenure.record()
    assert not tenure.stop_requested()
    assert log_of(tenure) == ["queued", "starting", "a", "queued", "starting"]
