from __future__ import annotations

import json

import pytest

from core.events import to_json
from jobs.tables import Event
from service.sse import sse_of, text_of


def event(kind: str, data: dict[str, object]) -> Event:
    return Event(job_id="job_x", seq=7, kind=kind, attempt=1, created_at=0.0, data=to_json(data))


def test_an_event_goes_out_as_the_ledger_keeps_it() -> None:
    said = event("log", {"line": "a\u2028b"})
    assert sse_of(said) == b'id: 7\nevent: log\ndata: {"line":"a\\u2028b"}\n\n'
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
    assert text_of(event(kind, data)).decode() == shown


def test_a_line_cannot_speak_to_the_terminal() -> None:
    assert text_of(event("log", {"line": "\x1b[2Ja\tb\r\n\x9bc"})) == "\ufffd[2Ja\tb\ufffd \ufffdc\n".encode()


def test_half_a_surrogate_pair_does_not_stop_a_stream() -> None:
    assert text_of(event("log", {"line": "a\ud800b"})) == b"a?b\n"
