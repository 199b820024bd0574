"""A job's events as bytes that leave one by one: server-sent events for programs, plain lines for a person.

Deliberate: `id` and `event` are written before `data`, and `data` is the line that the ledger keeps, unchanged; it is
ASCII, so that no reader splits it at a separator that only Unicode knows. Nothing is dropped for a slow reader: it is
let go after a while, and comes back with the number of the last event it saw.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable

from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.types import Receive, Scope, Send

from core.events import line_of, printable, to_json
from jobs.errors import LedgerUnavailable
from jobs.tables import Event
from service.settings import ServiceSettings
from service.tails import PAGE, Tail, Tails

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 5
"""A stream that has not said its farewell by then is cut off; uvicorn itself waits longer."""

_RETRY = b"retry: 2000\n\n"


class Stream(EventSourceResponse):
    """A response without an end that lets a stalled reader go; a person's lines are not pinged."""

    def __init__(
        self, content: AsyncIterator[bytes], settings: ServiceSettings, media_type: str = "text/event-stream"
    ) -> None:
        super().__init__(
            content,
            media_type=media_type,
            sep="\n",
            ping=settings.ping_seconds if media_type == "text/event-stream" else 0,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            send_timeout=settings.stalled_reader_seconds,
            shutdown_grace_period=FAREWELL_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            log.info("a stalled reader was let go: %s", scope["path"])


class JobLog:
    """One reader's way through a job's events.

    Args:
        tails: Reads pages, and says when there is a next one.
        tail: Of this job.
        seq: The last event that the reader has.
    """

    def __init__(self, tails: Tails, tail: Tail, seq: int) -> None:
        self._tails = tails
        self._tail = tail
        self._seq = seq

    async def as_sse(self) -> AsyncIterator[bytes]:
        """Up to and with the event `done`, or a farewell if the service ends before."""
        yield _RETRY
        async for chunk in self._chunks(sse_of, lambda said: f": {said}\n\n".encode()):
            yield chunk

    async def as_text(self, *, waits: bool = False) -> AsyncIterator[bytes]:
        """The lines of the log alone, until the job has ended; before them, that the job waits for a worker."""
        if waits:
            yield "⏳ Waiting for a worker …\n".encode()
        async for chunk in self._chunks(text_of, lambda said: f"# {said}\n".encode()):
            yield chunk

    async def _chunks(self, render: Callable[[Event], bytes], aside: Callable[[str], bytes]) -> AsyncIterator[bytes]:
        while not self._tails.closing:
            try:
                page = await self._tails.page(self._tail.job_id, self._seq)
            except LedgerUnavailable as error:
                yield aside(f"{error.message} Come back in a moment.")
                return
            for event in page:
                if chunk := render(event):
                    yield chunk
                if event.kind == "done":
                    return
                self._seq = event.seq
            if len(page) < PAGE and not await self._tail.beyond(self._seq):
                break
        yield aside("The service is stopping; come back to go on." if self._tails.closing else "The job is gone.")


def sse_of(event: Event) -> bytes:
    """One event as the wire has it."""
    return f"id: {event.seq}\nevent: {event.kind}\ndata: {event.data}\n\n".encode()


def sse_message(kind: str, data: dict[str, object]) -> bytes:
    """A message that belongs to no log, so it has no id."""
    return f"event: {kind}\ndata: {to_json(data)}\n\n".encode()


def text_of(event: Event) -> bytes:
    """What a person at a terminal sees of an event: its line, or nothing."""
    line = line_of(event.kind, json.loads(event.data))
    # The text may be a model's: it stays one line, and no control character of it speaks to the terminal.
    return b"" if line is None else printable(line).replace("\n", " ").encode("utf-8", "replace") + b"\n"
