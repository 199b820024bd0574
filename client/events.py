"""A job's event stream that survives broken connections."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2

from client.errors import ServiceUnreachable, not_ratchet, problem_of
from client.sse import Message, Parser

SILENCE_SECONDS = 45.0
"""A stream that says nothing for three of the service's pings is dead."""

PATIENCE_SECONDS = 300.0
"""How long to keep coming back to a service that is gone: a restart with a migration fits, a shutdown shows."""


class Event(NamedTuple):
    """One numbered event of a job, as `core.events` and the ledger have them."""

    seq: int
    kind: str
    data: dict[str, Any]


class JobStream:
    """Reads `path` from event `after` + 1 to the last one, over as many connections as that takes."""

    def __init__(self, http: httpx2.Client, url: str, path: str, after: int, patience_seconds: float) -> None:
        self._http = http
        self._url = url
        self._path = path
        self._seq = after
        self._patience_seconds = patience_seconds
        self._retry_seconds = 2.0
        self._connected_once = False
        self._last_contact = time.monotonic()
        self._ended = False

    def events(self) -> Iterator[Event]:
        """Every event once, in order; returns after `done`, or at once if the stream is drained."""
        while True:
            reason = "the stream ended early"
            try:
                yield from self._connection()
            except httpx2.TransportError as error:
                reason = str(error) or type(error).__name__
            if self._ended:
                return
            if not self._connected_once or time.monotonic() - self._last_contact > self._patience_seconds:
                raise ServiceUnreachable(self._url, reason)
            time.sleep(self._retry_seconds)

    def _connection(self) -> Iterator[Event]:
        headers = {"Accept": "text/event-stream"}
        if self._seq:
            headers["Last-Event-ID"] = str(self._seq)
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=5.0)
        with self._http.stream("GET", self._path, headers=headers, timeout=timeout) as answer:
            if not self._is_stream(answer):
                return
            self._connected_once = True
            self._last_contact = time.monotonic()
            parser = Parser(str(self._seq or ""), self._retry_seconds)
            for message in parser.parse(answer.iter_bytes()):
                self._retry_seconds = parser.retry_seconds
                yield from self._take(message)
                if self._ended:
                    return

    def _is_stream(self, answer: httpx2.Response) -> bool:
        """False if there is nothing to read: at the end of the log for good, or while the service is not ready."""
        if answer.status_code == httpx2.codes.NO_CONTENT:
            self._ended = True
            return False
        if answer.is_error:
            answer.read()
            passing = answer.status_code == httpx2.codes.TOO_MANY_REQUESTS or answer.is_server_error
            if not (passing and self._connected_once):
                raise problem_of(answer)
            return False
        if not answer.headers.get("content-type", "").startswith("text/event-stream"):
            raise not_ratchet(answer.status_code)
        return True

    def _take(self, message: Message) -> Iterator[Event]:
        """The message as an event, unless it is no part of the log, as a farewell is, or was read before."""
        self._last_contact = time.monotonic()
        seq = int(message.id) if message.id.isdecimal() else self._seq
        self._ended = message.event == "done"
        if seq > self._seq or self._ended:
            self._seq = seq
            yield Event(seq, message.event, json.loads(message.data))
