from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message

from core.events import to_json
from jobs.tables import Event
from service.sse import CHUNK_BYTES, Stream, packed
from service.written import Written
from tests.unit.service.conftest import Settled


def written(kind: str, data: dict[str, object]) -> Written:
    return Written(Event(job_id="job_x", seq=7, kind=kind, attempt=1, created_at=0.0, data=to_json(data)))


def test_an_event_goes_out_as_the_ledger_keeps_it() -> None:
    said = written("log", {"line": "a\u2028b"})
    assert said.as_sse == b'id: 7\nevent: log\ndata: {"line":"a\\u2028b"}\n\n'
    assert json.loads(said.data) == {"line": "a\u2028b"}


@pytest.mark.parametrize(
    ("kind", "data", "shown"),
    [
        ("log", {"line": "🚀 on"}, "🚀 on\n"),
        ("warning", {"message": "hot"}, "⚠️ hot\n"),
        ("state", {"state": "failed", "error": {"code": "oom", "message": "too big"}}, "❌ too big\n"),
        ("state", {"state": "running"}, ""),
        ("step", {"step": 1}, ""),
    ],
)
def test_a_person_sees_lines_alone(kind: str, data: dict[str, object], shown: str) -> None:
    assert written(kind, data).as_text.decode() == shown


def test_a_line_cannot_speak_to_the_terminal() -> None:
    assert written("log", {"line": "\x1b[2Ja\tb\r\n\x9bc"}).as_text == "\ufffd[2Ja\tb\ufffd \ufffdc\n".encode()


def test_half_a_surrogate_pair_does_not_stop_a_stream() -> None:
    assert written("log", {"line": "a\ud800b"}).as_text == b"a?b\n"


def test_small_pieces_leave_together_and_none_is_empty() -> None:
    half = b"x" * (CHUNK_BYTES // 2)
    assert list(packed([b"", b"a", b"", b"b"])) == [b"ab"]
    assert list(packed([half, half, b"a", b""])) == [half + half, b"a"]
    assert list(packed([b"a", 3 * half, b""])) == [b"a" + 3 * half]
    assert list(packed([b"", b""])) == list(packed([])) == []


class Reader:
    """The other end of a response; it may stop taking anything, and it may owe a body."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.takes = 1_000_000
        self.leaves = asyncio.Event()
        self.owes = False

    async def send(self, message: Message) -> None:
        if len(self.heard) >= self.takes:
            await asyncio.Event().wait()
        self.heard.append(message.get("body", b""))

    async def receive(self) -> Message:
        await self.leaves.wait()
        if self.owes:
            raise HTTPException(408)
        return {"type": "http.disconnect"}


class Content:
    """One word, and then nothing for as long as one waits."""

    def __init__(self) -> None:
        self.closed = False

    async def words(self) -> AsyncGenerator[bytes]:
        try:
            yield b"word"
            await asyncio.Event().wait()
        finally:
            self.closed = True


Story = Callable[[Reader, "asyncio.Future[None]"], Awaitable[None]]


@pytest.fixture
def answered(settled: Settled) -> Callable[..., None]:
    """A stream that is answered to a reader while a story goes on."""

    def answered(story: Story, media_type: str = "text/event-stream", **given: Any) -> None:
        async def run() -> None:
            reader, content = Reader(), Content()
            stream = Stream(content.words(), settled(**given), media_type)
            answering = asyncio.ensure_future(stream({"type": "http", "path": "/"}, reader.receive, reader.send))
            try:
                async with asyncio.timeout(5):
                    await story(reader, answering)
                    await answering
            finally:
                assert content.closed

        asyncio.run(run())

    return answered


def test_a_quiet_stream_is_pinged_until_its_reader_leaves(answered: Callable[..., None]) -> None:
    async def story(reader: Reader, answering: asyncio.Future[None]) -> None:
        while reader.heard.count(b": ping\n\n") < 3:
            await asyncio.sleep(0.01)
        reader.leaves.set()

    answered(story, ping_seconds=0.02)


def test_a_persons_lines_are_not_pinged(answered: Callable[..., None]) -> None:
    async def story(reader: Reader, answering: asyncio.Future[None]) -> None:
        await asyncio.sleep(0.1)
        assert reader.heard == [b"", b"word"]
        reader.leaves.set()

    answered(story, "text/plain", ping_seconds=0.01)


@pytest.mark.parametrize(("num_taken", "stalls_at"), [(1, "the content"), (2, "a ping")])
def test_a_reader_that_takes_nothing_is_let_go(answered: Callable[..., None], num_taken: int, stalls_at: str) -> None:
    async def story(reader: Reader, answering: asyncio.Future[None]) -> None:
        reader.takes = num_taken

    answered(story, ping_seconds=0.02, stalled_reader_seconds=0.05)


def test_a_reader_that_owes_the_body_it_announced_is_let_go(answered: Callable[..., None]) -> None:
    async def story(reader: Reader, answering: asyncio.Future[None]) -> None:
        reader.owes = True
        reader.leaves.set()

    answered(story)


def test_a_stream_that_is_cancelled_closes_what_it_tells(answered: Callable[..., None]) -> None:
    async def story(reader: Reader, answering: asyncio.Future[None]) -> None:
        await asyncio.sleep(0.01)
        answering.cancel()
        await asyncio.wait([answering])
        assert answering.cancelled()

    with pytest.raises(asyncio.CancelledError):
        answered(story)
