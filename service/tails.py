"""The one poller of this process: it looks up how far each watched job's log goes, and wakes the streams that wait.

However many streams there are, the ledger is asked once in each interval, and not at all while nobody watches. Streams
read their own pages, so a slow reader holds up nobody and misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager

import anyio.to_thread

from jobs import feed
from jobs.database import Database
from jobs.errors import LedgerUnavailable
from jobs.tables import Event
from service.errors import TooManyStreams

log = logging.getLogger(__name__)

PAGE = 500
READERS = 4
OUTAGE_SECONDS = 1.0


class Tail:
    """How far one job's log goes, for all streams that follow it."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.num_streams = 0
        self._last_seq = 0
        self._ended = False
        self._moved = asyncio.Event()

    async def beyond(self, seq: int) -> bool:
        """Wait for an event after number `seq`; False if none will come: the job is gone, or this process ends."""
        while self._last_seq <= seq and not self._ended:
            await self._moved.wait()
        return not self._ended

    def move(self, last_seq: int) -> None:
        """The log goes this far now."""
        if last_seq != self._last_seq:
            self._last_seq = last_seq
            self._wake()

    def end(self) -> None:
        """There is nothing more to wait for."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


class Tails:
    """All watched jobs. Made inside the event loop that it serves.

    Args:
        ledger: Where the events are.
        poll_seconds: Between two looks.
        max_streams: As many may be open at a time.
    """

    def __init__(self, ledger: Database, poll_seconds: float, max_streams: int) -> None:
        self._ledger = ledger
        self._poll_seconds = poll_seconds
        self._max_streams = max_streams
        self._tails: dict[str, Tail] = {}
        self._someone_watches = asyncio.Event()
        # Threads of their own: routes that wait for the ledger must not keep the streams waiting too.
        self._looking = anyio.CapacityLimiter(1)
        self._reading = anyio.CapacityLimiter(READERS)
        self.num_streams = 0
        self.num_looks = 0
        self.closing = False

    async def run(self) -> None:
        """Look, and wake, until cancelled."""
        while True:
            await self._someone_watches.wait()
            watched = list(self._tails)
            try:
                seqs = await anyio.to_thread.run_sync(self._look, watched, limiter=self._looking)
            except LedgerUnavailable as error:
                log.warning("streams wait: %s", error.message)
                await anyio.sleep(OUTAGE_SECONDS)
                continue
            except Exception:  # An edge of the process: nobody awaits this task, and every stream waits for it.
                log.exception("the poller stumbled")
                await anyio.sleep(OUTAGE_SECONDS)
                continue
            self._tell(watched, seqs)
            await anyio.sleep(self._poll_seconds)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Count as an open stream.

        Raises:
            TooManyStreams: there are as many as may be.
        """
        if self.num_streams >= self._max_streams:
            raise TooManyStreams(f"There are {self._max_streams} streams open, which is as many as may be.")
        self.num_streams += 1
        try:
            yield
        finally:
            self.num_streams -= 1

    @contextmanager
    def watch(self, job_id: str) -> Iterator[Tail]:
        """Follow a job's log.

        Raises:
            TooManyStreams: there are as many as may be.
        """
        with self.slot():
            tail = self._tails.setdefault(job_id, Tail(job_id))
            tail.num_streams += 1
            self._someone_watches.set()
            if self.closing:
                tail.end()
            try:
                yield tail
            finally:
                tail.num_streams -= 1
                if not tail.num_streams:
                    self._forget(tail)

    async def page(self, job_id: str, seq: int) -> list[Event]:
        """A job's events after number `seq`; fewer than `PAGE` of them if these are all."""
        return await anyio.to_thread.run_sync(self._read, job_id, seq, limiter=self._reading)

    def close(self) -> None:
        """Let every stream say farewell; this process is about to end."""
        self.closing = True
        for tail in self._tails.values():
            tail.end()

    def _look(self, job_ids: list[str]) -> dict[str, int]:
        self.num_looks += 1
        with self._ledger.read() as session:
            return feed.tail_seqs(session, job_ids)

    def _read(self, job_id: str, seq: int) -> list[Event]:
        with self._ledger.read() as session:
            return feed.after(session, job_id, seq, PAGE)

    def _tell(self, watched: list[str], seqs: dict[str, int]) -> None:
        for job_id in watched:
            tail = self._tails.get(job_id)
            if tail is None:
                continue  # Its last stream went while the ledger was asked.
            if job_id in seqs:
                tail.move(seqs[job_id])
            else:
                tail.end()

    def _forget(self, tail: Tail) -> None:
        self._tails.pop(tail.job_id, None)
        if not self._tails:
            self._someone_watches.clear()
