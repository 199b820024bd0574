from __future__ import annotations

import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest
from sqlmodel import select

from jobs import catalog, feed, lease, queue, shelf
from jobs.database import Database
from jobs.errors import CheckpointNeeded, CheckpointPinned, CheckpointRemoved, JobBusy, JobNotFound, LeaseLost
from jobs.lease import Succeeded
from jobs.queue import NewJob
from jobs.tables import FINAL, HELD, Checkpoint, Job, State, new_job_id

NUM_THREADS = 8
NUM_WORKERS = 8
NUM_JOBS = {"sqlite": 4_000, "postgresql": 2_000}


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


def saved(ledger: Database) -> Job:
    """A run in the hands of a worker, with two checkpoints."""
    submit(ledger)
    with ledger.write() as session:
        job = queue.claim(session, "w1", now=0.0)
        assert job is not None
        for step in (1, 2):
            told = {"id": f"{job.id}-{step}", "name": f"{job.id}-{step}", "step": step}
            feed.record(session, job.id, job.fence, [("checkpoint", told)])
    return job


@pytest.mark.parametrize("removal", ["retention", "request"])
@pytest.mark.parametrize("first", ["start", "removal", "either"])
def test_a_job_that_starts_from_a_checkpoint_while_it_is_removed_has_it_or_is_refused(
    ledger: Database, removal: str, first: str
) -> None:
    """The first has done its deed, and not committed it, when the second one begins."""
    for _ in range(10 if first == "either" else 1):
        job = saved(ledger)
        wanted = f"{job.id}-1"
        begun = threading.Event()

        def start(session: Any, wanted: str = wanted) -> None:
            queue.enqueue(session, NewJob("heir", {}, 10, parent_checkpoint=wanted))

        def remove(session: Any, wanted: str = wanted, job: Job = job) -> None:
            if removal == "retention":
                shelf.retire_superseded(session, job.id, job.fence, 1)
            else:
                shelf.remove(session, catalog.find_checkpoint(session, "local", wanted), lambda _: True)

        def act(deed: Callable[[Any], None], leads: bool, begun: threading.Event = begun) -> str:
            if not leads:
                begun.wait(10)
            try:
                with ledger.write() as session:
                    deed(session)
                    begun.set()
                    if leads and first != "either":
                        time.sleep(0.3)
            except (CheckpointRemoved, CheckpointNeeded):
                return "refused"
            return "done"

        with ThreadPoolExecutor(2) as pool:
            starting = pool.submit(act, start, first in ("start", "either"))
            removing = pool.submit(act, remove, first in ("removal", "either"))
            outcome = starting.result(timeout=30), removing.result(timeout=30)
        with ledger.read() as session:
            is_gone = session.get(Checkpoint, wanted).removed_at is not None
            heirs = session.exec(select(Job).where(Job.parent_checkpoint == wanted)).all()
        assert (outcome[0] == "refused") == is_gone == (not heirs)
        if first != "either":
            assert is_gone == (first == "removal")


def test_a_pin_that_races_retention_is_kept_or_refused(ledger: Database) -> None:
    for _ in range(10):
        job = saved(ledger)
        row = Checkpoint(id=f"{job.id}-1", name="", path="", step=1, created_at=0.0)

        def act(number: int, job: Job = job, row: Checkpoint = row) -> bool:
            try:
                with ledger.write() as session:
                    if number:
                        shelf.retire_superseded(session, job.id, job.fence, 1)
                    else:
                        shelf.set_pinned(session, row, True)
            except CheckpointRemoved:
                return False
            return True

        is_pinned, _ = at_once(2, act)
        with ledger.read() as session:
            found = session.get(Checkpoint, row.id)
        assert (found.pinned, found.removed_at is None) == (is_pinned, is_pinned)


def do(session: Any, deed: str, chance: random.Random, rows: list[Checkpoint], jobs: list[Job]) -> None:
    match deed:
        case "save":
            job = chance.choice([job for job in jobs if job.state in HELD])
            told = {"id": secrets.token_hex(4), "name": secrets.token_hex(4), "step": chance.randrange(100)}
            feed.record(session, job.id, job.fence, [("started", {}), ("checkpoint", told)])
            shelf.retire_superseded(session, job.id, job.fence, 2)
        case "remove":
            shelf.remove(session, chance.choice(rows), lambda _: True)
        case "pin":
            shelf.set_pinned(session, chance.choice(rows), chance.random() < 0.3)
        case "start":
            queue.enqueue(session, NewJob("heir", {}, 10, parent_checkpoint=chance.choice(rows).id))
            queue.claim(session, "w1", now=0.0)
        case "end":
            job = chance.choice([job for job in jobs if job.state in HELD])
            lease.finish(session, job.id, job.fence, Succeeded())
        case "delete":
            catalog.delete_job(session, chance.choice(jobs))
        case "clear":
            job = chance.choice(jobs)
            catalog.check_ended(job)
            shelf.remove_those_of(session, job)


def test_whatever_happens_to_one_run_at_once_nobody_waits_for_each_other_in_a_circle(ledger: Database) -> None:
    """Saves, removals, pins, new jobs, ends and deletions of jobs: each is done or refused."""
    done: Counter[str] = Counter()

    def act(number: int) -> None:
        chance = random.Random(number)
        for _ in range(12):
            with ledger.read() as session:
                rows, _ = catalog.list_checkpoints(session, "local", 50)
                jobs, _ = catalog.list_jobs(session, "local", 50)
            deed = chance.choice(["save", "remove", "pin", "start", "end", "delete", "clear"])
            try:
                with ledger.write() as session:
                    do(session, deed, chance, rows, jobs)
                done[deed] += 1
            except (CheckpointRemoved, CheckpointNeeded, CheckpointPinned, JobBusy, JobNotFound, LeaseLost, IndexError):
                done[f"{deed} refused"] += 1

    for _ in range(4):
        saved(ledger)
    at_once(NUM_THREADS, act)
    assert done["save"] > 3
    assert done["start"] > 1


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
