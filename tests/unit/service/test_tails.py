from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from jobs import queue
from jobs.database import Database
from jobs.queue import NewJob
from service.errors import TooManyStreams
from service.tails import Tails

POLL = 0.01


def with_tails(ledger: Database, story: Callable[[Tails], Awaitable[None]], max_streams: int = 2000) -> None:
    async def run() -> None:
        tails = Tails(ledger, POLL, max_streams)
        poller = asyncio.create_task(tails.run())
        try:
            await asyncio.wait_for(story(tails), timeout=10)
        finally:
            poller.cancel()

    asyncio.run(run())


@pytest.fixture
def ledger(tmp_path: Path) -> Database:
    ledger = Database(f"sqlite:///{tmp_path / 'ratchet.db'}")
    ledger.migrate()
    return ledger


@pytest.fixture
def job_id(ledger: Database) -> str:
    with ledger.write() as session:
        return queue.enqueue(session, NewJob("tale", {}, 10)).job.id


def test_many_streams_of_one_job_cost_one_look_each_interval(ledger: Database, job_id: str) -> None:
    async def story(tails: Tails) -> None:
        with ExitStack() as stack:
            tail = [stack.enter_context(tails.watch(job_id)) for _ in range(500)]
            waiting = asyncio.gather(*(each.beyond(1) for each in tail))
            await asyncio.sleep(10 * POLL)
            before = tails.num_looks
            await asyncio.sleep(20 * POLL)
            assert 1 <= tails.num_looks - before <= 20
            assert not waiting.done()
            await asyncio.to_thread(pause, ledger, job_id)
            assert all(await waiting)

    with_tails(ledger, story)


def test_nobody_is_asked_while_nobody_watches(ledger: Database, job_id: str) -> None:
    async def story(tails: Tails) -> None:
        with tails.watch(job_id) as tail:
            assert await tail.beyond(0)
        await asyncio.sleep(3 * POLL)
        before = tails.num_looks
        await asyncio.sleep(10 * POLL)
        assert tails.num_looks == before

    with_tails(ledger, story)


def test_a_job_that_is_gone_ends_its_streams(ledger: Database) -> None:
    async def story(tails: Tails) -> None:
        with tails.watch("job_gone") as tail:
            assert not await tail.beyond(0)

    with_tails(ledger, story)


def test_closing_wakes_those_who_wait_and_those_who_come_later(ledger: Database, job_id: str) -> None:
    async def story(tails: Tails) -> None:
        with tails.watch(job_id) as tail:
            waiting = asyncio.create_task(tail.beyond(99))
            await asyncio.sleep(POLL)
            tails.close()
            assert not await waiting
        with tails.watch(job_id) as late:
            assert not await late.beyond(99)

    with_tails(ledger, story)


def test_no_more_streams_than_may_be(ledger: Database, job_id: str) -> None:
    async def story(tails: Tails) -> None:
        with tails.watch(job_id), tails.slot(), pytest.raises(TooManyStreams), tails.watch(job_id):
            pass
        assert tails.num_streams == 0

    with_tails(ledger, story, max_streams=2)


def test_an_outage_of_the_ledger_is_waited_out(
    ledger: Database, job_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.tails.OUTAGE_SECONDS", POLL)
    path, away = tmp_path / "ratchet.db", tmp_path / "away.db"
    ledger.close()
    path.rename(away)

    async def story(tails: Tails) -> None:
        with tails.watch(job_id) as tail:
            waiting = asyncio.create_task(tail.beyond(0))
            await asyncio.sleep(5 * POLL)
            assert not waiting.done()
            away.rename(path)
            assert await waiting

    with_tails(ledger, story)


def pause(ledger: Database, job_id: str) -> None:
    with ledger.write() as session:
        job = queue.Job(id=job_id, seq=0, name="", config={}, training_steps=0, created_at=0.0)
        queue.request_pause(session, job)
