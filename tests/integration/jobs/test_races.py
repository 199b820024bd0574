from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jobs import feed, lease, queue
from jobs.database import Database
from jobs.errors import LeaseLost
from jobs.lease import Succeeded
from jobs.queue import NewJob
from jobs.tables import FINAL, State

NUM_THREADS = 8


def at_once(count: int, act: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(act, range(count)))


def submit(db: Database, **given: Any) -> Any:
    with db.write() as session:
        return queue.enqueue(session, NewJob("tale", {}, 10, **given))


def test_eight_workers_claim_two_hundred_jobs_and_no_job_twice(db: Database) -> None:
    with db.write() as session:
        ids = {queue.enqueue(session, NewJob("tale", {}, 10)).job.id for _ in range(200)}

    def work(number: int) -> list[str]:
        # Each worker opens the ledger itself, as a process would, so that the database is what keeps them apart.
        own = Database(f"sqlite:///{db.path}", busy_seconds=30.0)
        claimed: list[str] = []
        while True:
            with own.write() as session:
                job = queue.claim(session, f"w{number}", now=0.0)
            if job is None:
                own.close()
                return claimed
            claimed.append(job.id)

    claimed = Counter(job_id for share in at_once(NUM_THREADS, work) for job_id in share)
    assert claimed == Counter(ids)


def test_ten_repeats_of_a_request_at_once_make_one_job(db: Database) -> None:
    answers = at_once(10, lambda _: submit(db, idempotency_key="k", request_hash="h"))
    assert len({answer.job.id for answer in answers}) == 1
    assert [answer.created for answer in answers].count(True) == 1


def test_requests_at_once_get_one_place_in_line_each(db: Database) -> None:
    places = at_once(10, lambda _: submit(db).job.seq)
    assert sorted(places) == list(range(1, 11))


def test_appends_at_once_are_numbered_without_gap_or_repeat(db: Database) -> None:
    submit(db)
    with db.write() as session:
        job = queue.claim(session, "w1", now=0.0)

    def speak(number: int) -> None:
        for count in range(10):
            with db.write() as session:
                feed.record(session, job.id, job.fence, [("log", {"line": f"{number} {count}"})] * (count % 3 + 1))

    at_once(NUM_THREADS, speak)
    with db.read() as session:
        events = feed.after(session, job.id, 0, limit=10_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert feed.tail_seqs(session, [job.id]) == {job.id: len(events)}
    assert len(events) == 2 + NUM_THREADS * (4 + 2 * 3 + 3 * 3)


def test_a_cancel_that_races_a_finish_leaves_one_end(db: Database) -> None:
    for _ in range(10):
        submit(db)
        with db.write() as session:
            job = queue.claim(session, "w1", now=0.0)

        def race(number: int, job: Any = job) -> None:
            with db.write() as session:
                if number == 0:
                    queue.request_cancel(session, job)
                else:
                    lease.finish(session, job.id, job.fence, Succeeded())

        at_once(2, race)
        with db.read() as session:
            events = feed.after(session, job.id, 0)
        assert [event.kind for event in events].count("done") == 1
        assert State(events[-1].data.split('"')[3]) in FINAL


def test_of_two_workers_that_think_they_hold_a_job_one_ends_it(db: Database) -> None:
    submit(db)
    with db.write() as session:
        job = queue.claim(session, "w1", now=0.0)
        lease.release(session, job.id, job.fence)
        again = queue.claim(session, "w2", now=0.0)

    def end(fence: int) -> str:
        try:
            with db.write() as session:
                return lease.finish(session, job.id, fence, Succeeded()).state
        except LeaseLost:
            return "lost"

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(end, [1, 2])) == ["lost", "succeeded"]
    assert again.fence == 2
