from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest

from client.api import Ratchet, Token
from client.errors import ApiError, ServiceUnreachable
from tests.unit.client.conftest import JOB, sse

Handler = Callable[[httpx2.Request], httpx2.Response]


def ratchet(*answers: httpx2.Response | Exception | Handler, **settings: Any) -> tuple[Ratchet, list[httpx2.Request]]:
    """A client whose requests get these answers, one after the other, and those requests."""
    asked: list[httpx2.Request] = []
    waiting = iter(answers)

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked.append(request)
        found = next(waiting)
        if isinstance(found, Exception):
            raise found
        return found if isinstance(found, httpx2.Response) else found(request)

    return Ratchet("http://ratchet.test", transport=httpx2.MockTransport(answer), **settings), asked


def stream(text: str, then: Exception | None = None) -> httpx2.Response:
    def chunks() -> Iterator[bytes]:
        yield text.encode()
        if then is not None:
            raise then

    return httpx2.Response(200, headers={"Content-Type": "text/event-stream"}, content=chunks())


def problem(status: int, **document: Any) -> httpx2.Response:
    return httpx2.Response(status, json=document, headers={"Content-Type": "application/problem+json"})


LOST = httpx2.ReadError("connection reset")
REFUSED = httpx2.ConnectError("connection refused")


def test_a_fresh_run_is_what_was_said_and_nothing_more() -> None:
    api, asked = ratchet(httpx2.Response(201, json=JOB))
    assert api.train(source="tale.md", training_steps=2)["id"] == "job_tale"
    assert (asked[0].method, asked[0].url.path) == ("POST", "/jobs")
    assert json.loads(asked[0].content) == {"source": "tale.md", "training_steps": 2}


def test_a_lost_answer_is_asked_for_again_under_the_same_key(waits: list[float]) -> None:
    api, asked = ratchet(REFUSED, LOST, httpx2.Response(201, json=JOB))
    api.train()
    keys = {request.headers["Idempotency-Key"] for request in asked}
    assert len(asked) == 3
    assert len(keys) == 1
    assert waits == sorted(waits)


def test_two_runs_have_two_keys() -> None:
    api, asked = ratchet(httpx2.Response(201, json=JOB), httpx2.Response(201, json=JOB))
    api.train()
    api.train()
    assert asked[0].headers["Idempotency-Key"] != asked[1].headers["Idempotency-Key"]


def test_a_service_that_stays_silent_is_said_to_be_unreachable(waits: list[float]) -> None:
    api, asked = ratchet(*[REFUSED] * 4)
    with pytest.raises(ServiceUnreachable, match=r"no answer from http://ratchet\.test"):
        api.train()
    assert len(asked) == 4


def test_a_refusal_is_not_tried_again() -> None:
    api, asked = ratchet(
        problem(422, code="config_invalid", detail="No.", errors=[{"field": "seed", "message": "odd"}])
    )
    with pytest.raises(ApiError, match="No") as refusal:
        api.train(seed=-1)
    assert (refusal.value.status, refusal.value.code) == (422, "config_invalid")
    assert refusal.value.problems == [("seed", "odd")]
    assert len(asked) == 1


@pytest.mark.parametrize("body", [b"<html>Bad Gateway</html>", b'"no"', b""])
def test_a_proxy_that_answers_in_the_services_place_is_said_in_words(body: bytes) -> None:
    api, _ = ratchet(httpx2.Response(502, content=body))
    with pytest.raises(ApiError, match="502 Bad Gateway") as refusal:
        api.jobs()
    assert refusal.value.problems == []


def test_something_else_at_the_address_is_not_taken_for_ratchet() -> None:
    api, _ = ratchet(httpx2.Response(200, content=b"<html>hello</html>"))
    with pytest.raises(ApiError, match="is not Ratchet"):
        api.job("job_tale")


def test_the_key_is_shown_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_API_KEY", "secret")
    api, asked = ratchet(httpx2.Response(200, json={"data": []}))
    api.sources()
    assert asked[0].headers["Authorization"] == "Bearer secret"


def test_a_name_with_a_slash_in_it_stays_one_part_of_the_path() -> None:
    api, asked = ratchet(httpx2.Response(200, json=JOB))
    api.job("../workers")
    assert asked[0].url.raw_path == b"/jobs/..%2Fworkers"


def test_a_broken_stream_goes_on_where_it_broke_off(waits: list[float]) -> None:
    api, asked = ratchet(
        stream("retry: 500\n\n" + sse((1, "log", {"line": "a"}), (2, "log", {"line": "b"})), then=LOST),
        REFUSED,
        problem(503, detail="Starting."),
        stream(": ping\n\n" + sse((2, "log", {"line": "b"}), (3, "log", {"line": "c"}), (4, "done", {"state": "ok"}))),
    )
    assert [event.seq for event in api.events("job_tale")] == [1, 2, 3, 4]
    assert [request.headers.get("Last-Event-ID") for request in asked] == [None, "2", "2", "2"]
    assert waits == [0.5, 0.5, 0.5]


def test_a_stream_that_ends_before_its_time_is_opened_again(waits: list[float]) -> None:
    api, asked = ratchet(
        stream(sse((5, "log", {"line": "a"})) + ": The service is stopping; come back to go on.\n\n"),
        stream(sse((6, "done", {"state": "succeeded"}))),
    )
    assert [event.kind for event in api.events("job_tale", after=4)] == ["log", "done"]
    assert [request.headers["Last-Event-ID"] for request in asked] == ["4", "5"]


def test_a_message_that_is_no_part_of_the_log_is_not_an_event() -> None:
    farewell = "event: farewell\ndata: {}\n\n"
    api, _ = ratchet(stream(sse((1, "log", {"line": "a"})) + farewell + sse((2, "done", {"state": "succeeded"}))))
    assert [event.kind for event in api.events("job_tale")] == ["log", "done"]


def test_a_drained_stream_has_no_more_events() -> None:
    api, asked = ratchet(httpx2.Response(204))
    assert list(api.events("job_tale", after=9)) == []
    assert len(asked) == 1


def test_a_stream_that_never_began_is_not_waited_for() -> None:
    api, _ = ratchet(REFUSED)
    with pytest.raises(ServiceUnreachable):
        list(api.events("job_tale"))


def test_a_job_that_is_not_there_has_no_stream() -> None:
    api, _ = ratchet(problem(404, code="job_not_found", detail="There is no job 'x'."))
    with pytest.raises(ApiError, match="There is no job 'x'"):
        list(api.events("x"))


def test_patience_ends_with_a_service_that_is_gone(waits: list[float]) -> None:
    api, asked = ratchet(stream(sse((1, "log", {"line": "a"})), then=LOST), REFUSED, patience_seconds=0.0)
    with pytest.raises(ServiceUnreachable):
        list(api.events("job_tale"))
    assert len(asked) <= 2


def test_what_was_recorded_is_read_page_by_page() -> None:
    def page(seqs: list[int], more: bool) -> httpx2.Response:
        items = [{"seq": seq, "kind": "log", "data": {"line": str(seq)}} for seq in seqs]
        return httpx2.Response(200, json={"data": items, "has_more": more})

    api, asked = ratchet(page([1, 2], True), page([3], False))
    assert [event.seq for event in api.recorded_events("job_tale")] == [1, 2, 3]
    assert [request.url.params["after"] for request in asked] == ["0", "2"]
    assert asked[0].headers["Accept"] == "application/json"


def test_generated_text_comes_token_by_token() -> None:
    said = 'event: token\ndata: {"index": 0, "text": "Par"}\n\nevent: token\ndata: {"index": 0, "text": "is"}\n\n'
    api, asked = ratchet(stream(said + "event: finish\ndata: {}\n\nevent: done\ndata: {}\n\n"))
    assert list(api.generate_stream("tale", "Capital?", temperature=0)) == [Token(0, "Par"), Token(0, "is")]
    assert json.loads(asked[0].content) == {
        "checkpoint": "tale",
        "prompt": "Capital?",
        "temperature": 0,
        "stream": True,
    }


def test_an_error_in_mid_answer_is_raised_after_what_came_before_it() -> None:
    said = (
        'event: token\ndata: {"index": 0, "text": "Par"}\n\nevent: error\ndata: {"code": "x", "message": "Lost."}\n\n'
    )
    api, _ = ratchet(stream(said))
    tokens = api.generate_stream("tale", "Capital?")
    assert next(tokens).text == "Par"
    with pytest.raises(ApiError, match="Lost"):
        next(tokens)


def test_an_answer_that_breaks_off_is_not_taken_for_a_short_one() -> None:
    api, _ = ratchet(stream('event: token\ndata: {"index": 0, "text": "Par"}\n\n'))
    with pytest.raises(ServiceUnreachable, match="broke off"):
        list(api.generate_stream("tale", "Capital?"))


def test_nobody_asks_a_proxy_for_this_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with Ratchet("http://127.0.0.1:9", patience_seconds=0) as api, pytest.raises(ServiceUnreachable, match="refused"):
        api.jobs()
