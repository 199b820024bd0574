from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

from jobs import catalog, feed, lease, queue
from jobs.database import Database
from jobs.errors import LeaseLost
from jobs.lease import Succeeded
from jobs.queue import NewJob
from jobs.tables import FINAL, Job, State, new_job_id

NUM_THREADS = 8
NUM_WORKERS = 8
NUM_JOBS = {"sqlite": 10_000, "postgresql": 2_000}


@pytest.fixture(params=["db", "pg"], ids=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest) -> Database:
    found: Database = request.getfixturevalue(request.param)
    return found


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


def submit(ledger: Database, **given: Any) -> Any:
    with ledger.write() as session:
        return queue.enqueue(session, NewJob("tale", {}, 10, **given))


def claim_all(url: str, name: str) -> list[str]:
    """What one worker process gets until nothing is left."""
    ledger = Database(url, busy_seconds=60.0)
    claimed: list[str] = []
    while True:
        with ledger.write() as session:
            job = queue.claim(session, name, now=0.0)
        if job is None:
            ledger.close()
            return claimed
        claimed.append(job.id)


def test_eight_processes_claim_thousands_of_jobs_and_no_job_twice(ledger: Database) -> None:
    num_jobs = NUM_JOBS[ledger.reader.dialect.name]
    with ledger.write() as session:
        first = queue.enqueue(session, NewJob("tale", {}, 10)).job
        ids = [first.id, *(new_job_id() for _ in range(num_jobs - 1))]
        for place, job_id in enumerate(ids[1:], start=2):
            session.add(Job(**{**first.model_dump(), "id": job_id, "seq": place}))
    with ProcessPoolExecutor(NUM_WORKERS, mp_context=get_context("spawn")) as pool:
        shares = list(pool.map(claim_all, [ledger.url] * NUM_WORKERS, [f"w{number}" for number in range(NUM_WORKERS)]))
    assert Counter(job_id for share in shares for job_id in share) == Counter(ids)
    with ledger.read() as session:
        for job_id in random.Random(7).sample(ids, 100):
            job = catalog.get_job(session, "local", job_id)
            assert (job.state, job.fence, job.attempt, job.last_seq) == (State.STARTING, 1, 1, 2)


def test_ten_repeats_of_a_request_at_once_make_one_job(ledger: Database) -> None:
    answers = at_once(10, lambda _: submit(ledger, idempotency_key="k", request_hash="h"))
    assert len({answer.job.id for answer in answers}) == 1
    assert [answer.created for answer in answers].count(True) == 1


def test_requests_at_once_get_one_place_in_line_each(ledger: Database) -> None:
    places = at_once(10, lambda _: submit(ledger).job.seq)
    assert sorted(places) == list(range(1, 11))


def test_appends_at_once_are_numbered_without_gap_or_repeat(ledger: Database) -> None:
    submit(ledger)
    with ledger.write() as session:
        job = queue.claim(session, "w1", now=0.0)

    def speak(number: int) -> None:
        for count in range(10):
            with ledger.write() as session:
                feed.record(session, job.id, job.fence, [("log", {"line": f"{number} {count}"})] * (count % 3 + 1))

    at_once(NUM_THREADS, speak)
    with ledger.read() as session:
        events = feed.after(session, job.id, 0, limit=10_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert feed.tail_seqs(session, [job.id]) == {job.id: len(events)}
    assert len(events) == 2 + NUM_THREADS * (4 + 2 * 3 + 3 * 3)


def test_a_cancel_that_races_a_finish_leaves_one_end(ledger: Database) -> None:
    for _ in range(10):
        submit(ledger)
        with ledger.write() as session:
            job = queue.claim(session, "w1", now=0.0)

        def race(number: int, job: Any = job) -> None:
            with ledger.write() as session:
                if number == 0:
                    queue.request_cancel(session, job)
                else:
                    lease.finish(session, job.id, job.fence, Succeeded())

        at_once(2, race)
        with ledger.read() as session:
            events = feed.after(session, job.id, 0)
        assert [event.kind for event in events].count("done") == 1
        assert State(events[-1].data.split('"')[3]) in FINAL


def test_of_two_workers_that_think_they_hold_a_job_one_ends_it(ledger: Database) -> None:
    submit(ledger)
    with ledger.write() as session:
        job = queue.claim(session, "w1", now=0.0)
        lease.release(session, job.id, job.fence)
        again = queue.claim(session, "w2", now=0.0)

    def end(fence: int) -> str:
        try:
            with ledger.write() as session:
                return lease.finish(session, job.id, fence, Succeeded()).state
        except LeaseLost:
            return "lost"

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(end, [1, 2])) == ["lost", "succeeded"]
    assert again.fence == 2
