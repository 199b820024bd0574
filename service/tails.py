"""The one poller of this process: it reads what is new in each watched job's log, and wakes the streams that wait.

However many streams there are, an event is read and written once for all that are at the live edge, and the ledger is
not asked at all while nobody watches. A stream that is behind reads pages of its own until it has caught up, so a slow
reader holds up nobody and misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import anyio.to_thread
from sqlmodel import Session

from jobs import feed
from jobs.database import Database
from jobs.errors import LedgerUnavailable
from service.errors import TooManyStreams
from service.written import Written

log = logging.getLogger(__name__)

PAGE = 500
"""Events that are read at a time."""

KEPT_BYTES = 64 << 10
"""Of a job's newest events, which wait in memory for streams that are a little late."""

READERS = 4
OUTAGE_SECONDS = 1.0


class Stretch(NamedTuple):
    """A part of a log: all of its events up to number `reach`, from wherever it was asked for.

    The numbers of a finished job's events may have holes, so `reach` may be beyond the last event here.
    """

    events: Sequence[Written]
    reach: int
    has_more: bool = False


class Tail:
    """The end of one job's log, for all streams that follow it."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.num_streams = 0
        self._kept: deque[Written] = deque()
        self._num_bytes = 0
        # All events after this number and up to the end are kept. Nothing is known before the first look.
        self._kept_after = sys.maxsize
        self._last_seq = 0
        self._ended = False
        self._moved = asyncio.Event()

    @property
    def last_seq(self) -> int | None:
        """How far the log was followed; None before the first look."""
        return None if self._kept_after == sys.maxsize else self._last_seq

    def since(self, seq: int) -> Stretch | None:
        """What follows number `seq`; None if that is no longer here, or not yet."""
        if seq < self._kept_after:
            return None
        fresh: list[Written] = []
        for event in reversed(self._kept):
            if event.seq <= seq:
                break
            fresh.append(event)
        return Stretch(fresh[::-1], max(seq, self._last_seq))

    async def beyond(self, seq: int) -> bool:
        """Wait for an event after number `seq`; False if none will come: the job is gone, or this process ends."""
        while self._last_seq <= seq and not self._ended:
            await self._moved.wait()
        return not self._ended

    def move(self, stretch: Stretch) -> None:
        """The log goes on like this."""
        if self.last_seq is None:
            self._kept_after = stretch.reach
        if stretch.reach == self._last_seq:
            return
        self._last_seq = stretch.reach
        self._kept.extend(stretch.events)
        self._num_bytes += sum(len(event.data) for event in stretch.events)
        while self._num_bytes > KEPT_BYTES and len(self._kept) > 1:
            oldest = self._kept.popleft()
            self._num_bytes -= len(oldest.data)
            self._kept_after = oldest.seq
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
        self.num_pages = 0
        self.closing = False

    async def run(self) -> None:
        """Look, and wake, until cancelled."""
        while True:
            await self._someone_watches.wait()
            try:
                pause_seconds = await self._round()
            except LedgerUnavailable as error:
                log.warning("streams wait: %s", error.message)
                pause_seconds = OUTAGE_SECONDS
            except Exception:  # An edge of the process: nobody awaits this task, and every stream waits for it.
                log.exception("the poller stumbled")
                pause_seconds = OUTAGE_SECONDS
            await asyncio.sleep(pause_seconds)

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

    async def page(self, job_id: str, seq: int) -> Stretch:
        """What follows number `seq`, for a stream that is behind."""
        return await anyio.to_thread.run_sync(self._read, job_id, seq, limiter=self._reading)

    def close(self) -> None:
        """Let every stream say farewell; this process is about to end."""
        self.closing = True
        for tail in self._tails.values():
            tail.end()

    async def _round(self) -> float:
        """One look; the seconds until the next one."""
        watched = list(self._tails.values())
        seen = {tail.job_id: tail.last_seq for tail in watched}
        stretches = await anyio.to_thread.run_sync(self._look, seen, limiter=self._looking, abandon_on_cancel=True)
        for tail in watched:
            if tail.job_id in stretches:
                tail.move(stretches[tail.job_id])
            else:
                tail.end()
        return 0 if any(stretch.has_more for stretch in stretches.values()) else self._poll_seconds

    def _look(self, seen: Mapping[str, int | None]) -> dict[str, Stretch]:
        """What is new in each of these jobs; those that are gone are left out."""
        self.num_looks += 1
        with self._ledger.read() as session:
            ends = feed.tail_seqs(session, list(seen))
            return {job_id: _stretch(session, job_id, seen[job_id], end) for job_id, end in ends.items()}

    def _read(self, job_id: str, seq: int) -> Stretch:
        self.num_pages += 1
        with self._ledger.read() as session:
            return _stretch(session, job_id, seq, feed.tail_seqs(session, [job_id]).get(job_id, seq))

    def _forget(self, tail: Tail) -> None:
        self._tails.pop(tail.job_id, None)
        if not self._tails:
            self._someone_watches.clear()


def _stretch(session: Session, job_id: str, seq: int | None, end: int) -> Stretch:
    """What follows number `seq` in a log that ends with number `end`; nothing if the reader comes from nowhere."""
    if seq is None or seq >= end:
        return Stretch((), end)
    events = [Written(event) for event in feed.after(session, job_id, seq, PAGE)]
    last_seq = events[-1].seq if events else seq
    is_full = len(events) == PAGE
    # A short page is the whole rest, even if the last numbers of the log should be missing.
    return Stretch(events, last_seq if is_full else max(last_seq, end), is_full)
