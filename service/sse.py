"""A job's events as a response that goes on until the job ends: server-sent events for programs, lines for a person.

Nothing is dropped for a slow reader: it is let go after a while, and comes back with the number of the last event that
it saw.

Deliberate: no library stands between the events and the socket, and a stream is two tasks. Whatever a thousand streams
are made of is walked by each full garbage collection, for which all of them wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from operator import attrgetter

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from core.events import to_json
from jobs.errors import LedgerUnavailable
from service.settings import ServiceSettings
from service.tails import Stretch, Tail, Tails
from service.written import Written

log = logging.getLogger(__name__)

CHUNK_BYTES = 16 << 10
"""Events of a page leave together until they are this many; so much more than its share a stalled reader may hold."""

_RETRY = b"retry: 2000\n\n"
_PING = b": ping\n\n"

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # Proxies that know it pass each piece on at once.
}


class Stalled(Exception):
    """The reader takes nothing any more."""


class Stream(Response):
    """A response that ends with its content, or when its reader leaves or stalls; a person's lines are not pinged."""

    def __init__(
        self, content: AsyncGenerator[bytes], settings: ServiceSettings, media_type: str = "text/event-stream"
    ) -> None:
        self._content = content
        self._stalled_seconds = settings.stalled_reader_seconds
        self._ping_seconds = settings.ping_seconds if media_type == "text/event-stream" else None
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with asyncio.TaskGroup() as group:
                attending = group.create_task(self._attend(receive, send))
                await self._tell(send)
                attending.cancel()
        except* (ClientDisconnect, HTTPException):
            pass  # The reader left, or still owes the body that it announced.
        except* Stalled:
            log.info("a stalled reader was let go: %s", scope["path"])

    async def _tell(self, send: Send) -> None:
        async with aclosing(self._content):
            async for chunk in self._content:
                await self._send(send, chunk)
        await self._send(send, b"", more_body=False)

    async def _attend(self, receive: Receive, send: Send) -> None:
        """Show now and then that the stream lives, until its reader is gone."""
        while True:
            try:
                async with asyncio.timeout(self._ping_seconds):
                    while (await receive())["type"] != "http.disconnect":
                        pass
            except TimeoutError:
                await self._send(send, _PING)
            else:
                raise ClientDisconnect

    async def _send(self, send: Send, body: bytes, *, more_body: bool = True) -> None:
        try:
            async with asyncio.timeout(self._stalled_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more_body})
        except TimeoutError:
            raise Stalled from None


class JobLog:
    """One reader's way through a job's events.

    Args:
        tails: Reads pages.
        tail: Of this job: has the newest events, and says when there are more.
        seq: The last event that the reader has.
    """

    def __init__(self, tails: Tails, tail: Tail, seq: int) -> None:
        self._tails = tails
        self._tail = tail
        self._seq = seq

    def as_sse(self) -> AsyncGenerator[bytes]:
        """Up to and with the event `done`, or a farewell if the service ends before."""
        return self._told(_RETRY, attrgetter("as_sse"), ": {}\n\n")

    def as_text(self, *, waits: bool = False) -> AsyncGenerator[bytes]:
        """The lines of the log alone, until the job has ended; before them, that the job waits for a worker."""
        return self._told("⏳ Waiting for a worker …\n".encode() if waits else b"", attrgetter("as_text"), "# {}\n")

    async def _told(self, first: bytes, form: Callable[[Written], bytes], aside: str) -> AsyncGenerator[bytes]:
        if first:
            yield first
        while not self._tails.closing:
            try:
                stretch = await self._next()
            except LedgerUnavailable as error:
                yield aside.format(f"{error.message} Come back in a moment.").encode()
                return
            for chunk in packed(map(form, stretch.events)):
                yield chunk
            if stretch.events and stretch.events[-1].kind == "done":
                return
            self._seq = stretch.reach
            if not stretch.has_more and not await self._tail.beyond(self._seq):
                break
        said = "The service is stopping; come back to go on." if self._tails.closing else "The job is gone."
        yield aside.format(said).encode()

    async def _next(self) -> Stretch:
        kept = self._tail.since(self._seq)
        return await self._tails.page(self._tail.job_id, self._seq) if kept is None else kept


def packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer pieces, none of which is empty or holds more than one piece beyond `CHUNK_BYTES`."""
    chunk: list[bytes] = []
    num_bytes = 0
    for piece in pieces:
        chunk.append(piece)
        num_bytes += len(piece)
        if num_bytes >= CHUNK_BYTES:
            yield b"".join(chunk)
            chunk, num_bytes = [], 0
    if num_bytes:
        yield b"".join(chunk)


def sse_message(kind: str, data: dict[str, object]) -> bytes:
    """A message that belongs to no log, so it has no id."""
    return f"event: {kind}\ndata: {to_json(data)}\n\n".encode()
