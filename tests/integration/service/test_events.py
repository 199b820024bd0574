from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import httpx2
import pytest
from starlette.testclient import TestClient

from core.checkpoints.manifest import Checkpoint
from jobs.lease import Failed
from jobs.tables import Job
from tests.integration.service.conftest import Enlist, Hand, Running, until

Finished = Callable[..., tuple[Job, Checkpoint]]
RunService = Callable[..., AbstractContextManager[Running]]

KINDS = ["state", "state", "state", "started", "log", "step", "checkpoint", "state", "done"]


def messages(text: str) -> list[dict[str, str]]:
    """The server-sent events of a stream that has ended; comments have the field ''."""
    blocks = [block for block in text.split("\n\n") if block]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def read(running: Running, job: Job, into: list[str], **request: Any) -> threading.Thread:
    """Follow a job from another thread, chunk by chunk."""

    def follow() -> None:
        with httpx2.stream("GET", f"{running.url}/jobs/{job.id}/events", timeout=20, **request) as answer:
            into.extend(answer.iter_text())

    thread = threading.Thread(target=follow)
    thread.start()
    return thread


def test_a_finished_job_is_replayed_from_the_beginning(client: TestClient, finished: Finished) -> None:
    job, _ = finished()
    answer = client.get(f"/jobs/{job.id}/events")
    first, *events = messages(answer.text)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert first == {"retry": "2000"}
    assert [event["id"] for event in events] == [str(n) for n in range(1, 10)]
    assert [event["event"] for event in events] == KINDS
    assert json.loads(events[5]["data"]) == {"step": 20, "loss": 2.0}


def test_what_leaves_is_the_ledgers_own_line(client: TestClient, submit: Callable[..., Job], hand: Hand) -> None:
    submit()
    job = hand.claim()
    hand.say(job, ("log", {"line": "a\u2028b\r\nc\ud800"}), ("step", {"loss": float("nan")}))
    hand.finish(job)
    events = messages(client.get(f"/jobs/{job.id}/events").text)
    assert events[5]["data"] == '{"line":"a\\u2028b\\r\\nc\\ud800"}'
    assert events[6]["data"] == '{"loss":null}'


def test_a_reader_goes_on_after_the_last_event_it_saw(client: TestClient, finished: Finished) -> None:
    job, _ = finished()
    path = f"/jobs/{job.id}/events"
    by_header = messages(client.get(path, headers={"Last-Event-ID": "6"}).text)
    by_query = messages(client.get(f"{path}?after=6").text)
    both = messages(client.get(f"{path}?after=1", headers={"Last-Event-ID": "6"}).text)
    assert [event["id"] for event in by_header[1:]] == ["7", "8", "9"]
    assert by_header == by_query == both


def test_a_reader_that_has_seen_all_is_told_to_stop(client: TestClient, finished: Finished) -> None:
    job, _ = finished()
    for form in ("sse", "text"):
        answer = client.get(f"/jobs/{job.id}/events?format={form}", headers={"Last-Event-ID": "9"})
        assert (answer.status_code, answer.content) == (204, b"")


def test_a_position_that_cannot_be_is_a_400(client: TestClient, finished: Finished) -> None:
    job, _ = finished()
    path = f"/jobs/{job.id}/events"
    for said in ("-1", "10", "x", "1.0", "9" * 5000, " 1e3", "0x1", "+1"):
        for asked in ({"headers": {"Last-Event-ID": said}}, {"params": {"after": said}}):
            answer = client.get(path, **asked)
            assert (answer.status_code, answer.json()["code"]) == (400, "position_invalid")
    for said in ("%00", "%D9%A3", "%ff"):
        assert client.get(f"{path}?format=json&after={said}").status_code == 400


@pytest.mark.parametrize("asked", [{"params": {"format": "text"}}, {"headers": {"Accept": "text/plain"}}])
def test_a_person_gets_lines(client: TestClient, finished: Finished, asked: dict[str, Any]) -> None:
    job, _ = finished()
    answer = client.get(f"/jobs/{job.id}/events", **asked)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text == "🚀 Training\n"


def test_of_the_newest_job_there_is_no_going_on_from_a_number(client: TestClient, finished: Finished) -> None:
    job, _ = finished()
    path = "/jobs/latest/events"
    assert client.get(path).text == client.get(f"/jobs/{job.id}/events").text
    for asked in ({"headers": {"Last-Event-ID": "1"}}, {"params": {"after": "0"}}):
        answer = client.get(path, **asked)
        assert (answer.status_code, answer.json()["code"]) == (400, "position_invalid")
        assert job.id in answer.json()["detail"]


def test_a_person_reads_why_a_job_failed(client: TestClient, submit: Callable[..., Job], hand: Hand) -> None:
    submit()
    job = hand.claim()
    hand.finish(job, Failed("non_finite", "The loss is NaN."))
    assert client.get(f"/jobs/{job.id}/events?format=text").text == "❌ The loss is NaN.\n"


@pytest.mark.parametrize("asked", [{"params": {"format": "json"}}, {"headers": {"Accept": "application/json"}}])
def test_a_program_gets_pages(client: TestClient, finished: Finished, asked: dict[str, Any]) -> None:
    job, _ = finished()
    path = f"/jobs/{job.id}/events"
    page = client.get(path, **asked).json()
    assert [event["kind"] for event in page["data"]] == KINDS
    assert set(page["data"][0]) == {"seq", "kind", "created_at", "attempt", "data"}
    assert page["data"][4]["data"] == {"line": "🚀 Training"}
    assert not page["has_more"]
    some = client.get(f"{path}?format=json&after=2&limit=3").json()
    assert ([event["seq"] for event in some["data"]], some["has_more"]) == ([3, 4, 5], True)
    assert client.get(f"{path}?format=json&after=9").json() == {"data": [], "has_more": False}
    assert client.get(f"{path}?format=json&limit=0").status_code == 422
    assert client.get(f"{path}?format=xml").status_code == 422


def test_events_arrive_while_the_job_runs(running: Running, submit: Callable[..., Job], hand: Hand) -> None:
    submit()
    job = hand.claim()
    sse: list[str] = []
    text: list[str] = []
    threads = [read(running, job, sse), read(running, job, text, params={"format": "text"})]
    until(lambda: "event: started" in "".join(sse))
    hand.say(job, ("log", {"line": "step one"}))
    until(lambda: "step one" in "".join(sse) and "step one\n" in "".join(text))
    hand.finish(job)
    for thread in threads:
        thread.join(timeout=5)
        assert not thread.is_alive()
    assert messages("".join(sse))[-1]["event"] == "done"
    assert "".join(text) == "step one\n"


def test_a_long_log_comes_in_pages_without_a_gap(running: Running, submit: Callable[..., Job], hand: Hand) -> None:
    submit()
    job = hand.claim()
    hand.say(job, *[("step", {"step": n}) for n in range(1100)])
    into: list[str] = []
    thread = read(running, job, into)
    hand.say(job, *[("step", {"step": n}) for n in range(1100)])
    hand.finish(job)
    thread.join(timeout=10)
    ids = [int(event["id"]) for event in messages("".join(into))[1:]]
    assert ids == list(range(1, len(ids) + 1))
    assert len(ids) == 4 + 2200 + 2


def test_a_quiet_stream_shows_that_it_lives(run_service: RunService, submit: Callable[..., Job]) -> None:
    into: list[str] = []
    with run_service(ping_seconds=0.05) as running:
        thread = read(running, submit(), into)
        until(lambda: "".join(into).count(": ping\n\n") >= 2)
        running.stop()
        thread.join(timeout=5)


def test_many_readers_cost_one_look_each_interval(
    run_service: RunService, submit: Callable[..., Job], hand: Hand
) -> None:
    submit()
    job = hand.claim()
    with run_service(poll_seconds=0.1) as running:
        readers: list[list[str]] = [[] for _ in range(30)]
        threads = [read(running, job, into) for into in readers]
        until(lambda: all("event: started" in "".join(into) for into in readers))
        tails = running.server._app.state.tails
        before, begun = tails.num_looks, time.monotonic()
        time.sleep(0.5)
        # One more for the interval that had begun; thirty readers would look thirty times as often.
        assert tails.num_looks - before <= (time.monotonic() - begun) / 0.1 + 1
        assert tails.num_streams == 30
        hand.finish(job)
        for thread in threads:
            thread.join(timeout=5)
        until(lambda: tails.num_streams == 0)
        assert all(messages("".join(into))[-1]["event"] == "done" for into in readers)


def test_streams_say_farewell_when_the_service_ends(running: Running, submit: Callable[..., Job]) -> None:
    job = submit()
    sse: list[str] = []
    text: list[str] = []
    threads = [read(running, job, sse), read(running, job, text, params={"format": "text"})]
    until(lambda: "event: state" in "".join(sse) and running.server._app.state.tails.num_streams == 2)
    assert running.stop() < 4
    for thread in threads:
        thread.join(timeout=5)
    assert "".join(sse).endswith(": The service is stopping; come back to go on.\n\n")
    assert "".join(text).endswith("# The service is stopping; come back to go on.\n")


def test_no_more_streams_than_may_be(run_service: RunService, submit: Callable[..., Job]) -> None:
    job = submit()
    into: list[str] = []
    with run_service(max_streams=1) as running:
        thread = read(running, job, into)
        until(lambda: "event: state" in "".join(into))
        answer = httpx2.get(f"{running.url}/jobs/{job.id}/events")
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_streams")
        assert httpx2.get(f"{running.url}/jobs/{job.id}/events?format=json").status_code == 200
        running.stop()
        thread.join(timeout=5)


def test_a_reader_that_leaves_is_forgotten(running: Running, submit: Callable[..., Job]) -> None:
    tails = running.server._app.state.tails
    with httpx2.stream("GET", f"{running.url}/jobs/{submit().id}/events") as answer:
        text = answer.iter_text()  # held: dropped, it would close the connection
        next(text)
        assert tails.num_streams == 1
    until(lambda: tails.num_streams == 0)


WAITING = "⏳ Waiting for a worker …\n"


@pytest.mark.parametrize("seen", [None, 31.0])
def test_a_person_is_told_at_once_that_no_worker_is_there(
    running: Running, submit: Callable[..., Job], hand: Hand, enlist: Enlist, seen: float | None
) -> None:
    if seen is not None:
        enlist("gone", None, age=seen)
    job = submit()
    text: list[str] = []
    thread = read(running, job, text, params={"format": "text"})
    until(lambda: "".join(text) == WAITING)
    hand.finish(hand.claim())
    thread.join(timeout=5)
    assert "".join(text) == WAITING


def test_a_person_whose_job_waits_behind_others_is_told_nothing(
    client: TestClient, submit: Callable[..., Job], enlist: Enlist
) -> None:
    enlist("busy", None)
    job = submit()
    client.app.state.tails.close()  # type: ignore[attr-defined]  # the stream ends by itself then
    assert WAITING not in client.get(f"/jobs/{job.id}/events?format=text").text
