from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlmodel import col, delete

from jobs import feed, lease, queue
from jobs.database import Database
from jobs.lease import Succeeded
from jobs.queue import NewJob
from jobs.tables import Event
from service import tails as tails_module
from service.errors import TooManyStreams
from service.sse import JobLog
from service.tails import Stretch, Tail, Tails
from service.written import Written

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


def written(seq: int, data: str = "{}") -> Written:
    return Written(Event(job_id="job_x", seq=seq, kind="step", attempt=1, created_at=0.0, data=data))


def in_a_loop(story: Callable[[], None]) -> None:
    async def run() -> None:
        story()

    asyncio.run(run())


def test_of_a_log_that_nobody_has_looked_at_nothing_is_kept() -> None:
    def story() -> None:
        tail = Tail("job_x")
        assert (tail.last_seq, tail.since(0), tail.since(99)) == (None, None, None)
        tail.move(Stretch((), 5))
        assert (tail.last_seq, tail.since(4), tail.since(5)) == (5, None, Stretch([], 5))

    in_a_loop(story)


def test_new_events_are_kept_until_they_are_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.tails.KEPT_BYTES", 100)

    def story() -> None:
        tail = Tail("job_x")
        tail.move(Stretch((), 5))
        events = [written(seq, "x" * 40) for seq in (6, 7, 8)]
        tail.move(Stretch(events, 8))
        assert (tail.since(5), tail.since(6), tail.since(8)) == (None, Stretch(events[1:], 8), Stretch([], 8))
        large = written(9, "x" * 1000)
        tail.move(Stretch([large], 9))
        assert (tail.since(7), tail.since(8)) == (None, Stretch([large], 9))

    in_a_loop(story)


def test_numbers_may_be_missing() -> None:
    def story() -> None:
        tail = Tail("job_x")
        tail.move(Stretch((), 5))
        event = written(8)
        tail.move(Stretch([event], 11))
        assert tail.since(6) == tail.since(7) == Stretch([event], 11)
        assert tail.since(9) == Stretch([], 11)

    in_a_loop(story)


class Hand:
    """A worker that holds the job."""

    def __init__(self, ledger: Database) -> None:
        self._ledger = ledger
        with ledger.write() as session:
            job = queue.claim(session, "w1", 0.0)
            assert job is not None
            feed.record(session, job.id, job.fence, [("started", {})])
        self._job_id, self._fence = job.id, job.fence

    def say(self, num_events: int, missing: int = 0) -> None:
        """So many events, of which the last few are thinned out at once."""
        with self._ledger.write() as session:
            last = feed.record(session, self._job_id, self._fence, [("step", {"step": n}) for n in range(num_events)])
            session.exec(delete(Event).where(col(Event.seq) > last - missing, col(Event.job_id) == self._job_id))

    def finish(self) -> None:
        with self._ledger.write() as session:
            lease.finish(session, self._job_id, self._fence, Succeeded())


async def follow(tails: Tails, job_id: str, seq: int, pause: Callable[[], float], into: list[int]) -> None:
    with tails.watch(job_id) as tail:
        async for chunk in JobLog(tails, tail, seq).as_sse():
            into += map(int, re.findall(rb"^id: (\d+)$", chunk, re.MULTILINE))
            await asyncio.sleep(pause())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(POLL)


def test_at_the_live_edge_an_event_is_read_once_for_all_streams(
    ledger: Database, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand = Hand(ledger)
    num_reads = 0
    read = feed.after

    def counted(*args: object) -> list[Event]:
        nonlocal num_reads
        num_reads += 1
        return read(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(tails_module.feed, "after", counted)

    async def story(tails: Tails) -> None:
        heard: list[list[int]] = [[] for _ in range(100)]
        streams = asyncio.gather(*(follow(tails, job_id, 0, lambda: 0, into) for into in heard))
        await until(lambda: all(len(into) == 4 for into in heard))
        pages, reads = tails.num_pages, num_reads
        for number in range(5, 15):
            await asyncio.to_thread(hand.say, 1)
            await until(lambda number=number: all(into[-1] == number for into in heard))  # type: ignore[misc]
        assert (tails.num_pages, num_reads) == (pages, reads + 10)
        await asyncio.to_thread(hand.finish)
        await streams
        assert all(into == list(range(1, 17)) for into in heard)

    with_tails(ledger, story)


def test_a_page_that_has_nothing_left_of_it_is_not_asked_for_again(ledger: Database, job_id: str) -> None:
    hand = Hand(ledger)
    hand.say(10, missing=10)

    async def story(tails: Tails) -> None:
        heard: list[int] = []
        stream = asyncio.create_task(follow(tails, job_id, 4, lambda: 0, heard))
        await asyncio.sleep(10 * POLL)
        assert (heard, tails.num_pages) == ([], 1)
        await asyncio.to_thread(hand.finish)
        await stream
        assert heard == [15, 16]

    with_tails(ledger, story)


@pytest.mark.parametrize("seed", range(3))
def test_streams_of_any_pace_from_anywhere_see_each_event_once(
    ledger: Database, job_id: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr("service.tails.PAGE", 7)
    monkeypatch.setattr("service.tails.KEPT_BYTES", 200)
    monkeypatch.setattr("service.sse.CHUNK_BYTES", 100)
    chance = random.Random(seed)
    hand = Hand(ledger)

    async def story(tails: Tails) -> None:
        heard: dict[int, list[int]] = {}
        streams = []
        for number in range(40):
            num_events = chance.choice((1, 1, 2, 5, 30))
            await asyncio.to_thread(hand.say, num_events, chance.choice((0, 0, 1, num_events)))
            heard[number] = []
            patience = chance.choice((0, 0, 0.001, 0.01))
            streams.append(asyncio.create_task(follow(tails, job_id, number, lambda p=patience: p, heard[number])))  # type: ignore[misc]
            await asyncio.sleep(chance.choice((0, POLL, 3 * POLL)))
        await asyncio.to_thread(hand.finish)
        await asyncio.gather(*streams)
        with ledger.read() as session:
            written = [event.seq for event in feed.after(session, job_id, 0, 10_000)]
        for seq, seen in heard.items():
            assert seen == [number for number in written if number > seq]

    with_tails(ledger, story)


def pause(ledger: Database, job_id: str) -> None:
    with ledger.write() as session:
        job = queue.Job(id=job_id, seq=0, name="", config={}, training_steps=0, created_at=0.0)
        queue.request_pause(session, job)
