"""Readers of one job's events, in a process of their own: raw sockets and little parsing, so that they cost little."""

from __future__ import annotations

import asyncio
import random
import re
import time
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

# An event lies within one chunk of the transfer encoding. If it did not, it would count as lost.
_EVENT = re.compile(rb"id: (\d+)\nevent: (\w+)\ndata: ([^\n]*)\n\n")
_EMITTED = re.compile(rb'"emitted_at":([\d.]+)')

_AT_ONCE = 64
"""Connections that are made at the same time."""

_PAUSE_SECONDS = 0.2
"""A reader comes back after some part of this."""


@dataclass(frozen=True)
class Crowd:
    """How many readers to send, where, and how they behave."""

    url: str
    job_id: str
    num_readers: int
    seed: int
    max_seconds: float
    """All are done by then, or give up."""
    num_disconnects: int = 0
    """After so many, counted over all of them, every reader stays until the end …"""
    disconnecting_seconds: float = 0.0
    """… and after this time as well."""
    max_bytes: int = 1500
    """A connection is dropped before this many bytes of the answer."""


@dataclass
class Reader:
    """What one reader has seen, over all its connections."""

    chance: random.Random
    last_seq: int = 0
    num_lost: int = 0
    num_repeated: int = 0
    ended: bool = False
    delays: array[float] = field(default_factory=lambda: array("d"))

    def see(self, events: Iterable[re.Match[bytes]], now: float) -> None:
        """Take events in the order in which they came."""
        for event in events:
            seq = int(event[1])
            if seq <= self.last_seq:
                self.num_repeated += 1
                continue
            self.num_lost += seq - self.last_seq - 1
            self.last_seq = seq
            self.ended = event[2] == b"done"
            if emitted := _EMITTED.search(event[3]):
                self.delays.append(now - float(emitted[1]))


class Wire(asyncio.Protocol):
    """One connection, dropped after `num_bytes` of the answer, wherever that is; what came later counts as unread."""

    def __init__(self, reader: Reader, request: bytes, num_bytes: int | None) -> None:
        self._reader = reader
        self._request = request
        self._num_bytes_left = num_bytes
        self._rest = b""
        self.was_cut = False
        self.answered = asyncio.get_running_loop().create_future()
        self.gone = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)
        if self._num_bytes_left == 0:
            self._cut()

    def data_received(self, data: bytes) -> None:
        """Take whole events."""
        now = time.time()
        if self.was_cut:
            return
        if self._num_bytes_left is not None:
            data = data[: self._num_bytes_left]
            self._num_bytes_left -= len(data)
        text = self._rest + data
        end = text.rfind(b"\n\n") + len(b"\n\n")
        self._rest = text[end:] if end > 1 else text
        if end > 1:
            self._reader.see(_EVENT.finditer(text, 0, end), now)
            if self._reader.last_seq:
                self._settle(self.answered)
        if self._num_bytes_left == 0:
            self._cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """By whomever."""
        self._settle(self.answered)
        self._settle(self.gone)

    def _cut(self) -> None:
        self.was_cut = True
        # The service hears of the one as a reset, of the other as a proper end.
        (self._transport.abort if self._reader.chance.random() < 0.5 else self._transport.close)()

    def _settle(self, future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)


class Readers:
    """All of them, and what they count together."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._place = urlsplit(crowd.url).netloc
        self._host, _, port = self._place.rpartition(":")
        self._port = int(port)
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._began = time.monotonic()
        self._disconnects_left = crowd.num_disconnects
        self.num_disconnects = 0
        self.num_failures = 0
        self.readers = [Reader(random.Random(f"{crowd.seed} {number}")) for number in range(crowd.num_readers)]

    async def follow(self, pipe: Connection) -> None:
        """Until the job ends. Tells once whether all readers have come to stay."""
        settled = [asyncio.Event() for _ in self.readers]
        following = [asyncio.create_task(self._follow(*pair)) for pair in zip(self.readers, settled, strict=True)]
        try:
            async with asyncio.timeout(self._crowd.max_seconds):
                await asyncio.gather(*(event.wait() for event in settled))
                pipe.send(True)
                await asyncio.gather(*following)
        except TimeoutError:
            pipe.send(False)
            self.num_failures += sum(not reader.ended for reader in self.readers)
        for task in following:
            task.cancel()
        await asyncio.gather(*following, return_exceptions=True)

    async def _follow(self, reader: Reader, settled: asyncio.Event) -> None:
        while not reader.ended:
            num_bytes = self._next_cut(reader)
            try:
                wire = await self._connect(reader, num_bytes)
            except OSError:
                self.num_failures += 1
            else:
                if num_bytes is None:
                    settled.set()
                await wire.gone
                self.num_disconnects += wire.was_cut
                self.num_failures += not (wire.was_cut or reader.ended)
            await asyncio.sleep(reader.chance.uniform(0, _PAUSE_SECONDS))
        settled.set()

    async def _connect(self, reader: Reader, num_bytes: int | None) -> Wire:
        request = (
            f"GET /jobs/{self._crowd.job_id}/events HTTP/1.1\r\nHost: {self._place}\r\n"
            f"Last-Event-ID: {reader.last_seq}\r\n\r\n"
        ).encode()
        async with self._gate:
            _, wire = await asyncio.get_running_loop().create_connection(
                lambda: Wire(reader, request, num_bytes), self._host, self._port
            )
            await wire.answered
        return wire

    def _next_cut(self, reader: Reader) -> int | None:
        too_late = time.monotonic() - self._began > self._crowd.disconnecting_seconds
        if not self._disconnects_left or too_late:
            return None
        self._disconnects_left -= 1
        return reader.chance.randrange(self._crowd.max_bytes)


def follow(crowd: Crowd, pipe: Connection) -> None:
    """The process: all readers follow the job, then it tells what they saw."""

    async def run() -> Readers:
        readers = Readers(crowd)
        await readers.follow(pipe)
        return readers

    told = asyncio.run(run())
    pipe.send(
        {
            "last_seqs": [reader.last_seq for reader in told.readers],
            "lost": sum(reader.num_lost for reader in told.readers),
            "repeated": sum(reader.num_repeated for reader in told.readers),
            "disconnects": told.num_disconnects,
            "failures": told.num_failures,
            "delays": array("d", (delay for reader in told.readers for delay in reader.delays)),
            "cpu_seconds": time.process_time(),
        }
    )
