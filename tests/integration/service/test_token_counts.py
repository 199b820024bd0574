"""Tokens of sources, from the service's side: what it asks a worker, and what it says when nobody can tell."""

from __future__ import annotations

import json
from typing import Any

import anyio
import httpx2
import pytest
from starlette.testclient import TestClient

from service import token_counts
from service.routes import sources as routes
from service.settings import ServiceSettings
from tests.integration.service.conftest import TALE, TOKEN, Answers, Enlist

COUNT = {"num_tokens": 17, "is_estimate": False, "error": None}
REFUSED = {"num_tokens": None, "is_estimate": False, "error": {"code": "generation_invalid", "message": "It cannot."}}


def test_a_worker_is_asked_for_the_tokens_of_one(client: TestClient, worker: Answers) -> None:
    asked = worker(200, {"counts": [COUNT]})
    found = client.get("/sources/tale.md", params={"tokenizer": "org/model"}).json()
    assert (found["num_tokens"], found["is_estimate"], found["num_characters"]) == (17, False, len(TALE))
    [request] = asked
    assert (request.url.path, request.headers["authorization"]) == ("/tokens", f"Bearer {TOKEN}")
    told = json.loads(request.content)
    assert told["model"] == "org/model"
    [source] = told["sources"]
    assert (source["name"], source["num_characters"], source["columns"]) == ("tale.md", len(TALE), {})
    assert source["sha256"] == found["sha256"]


def test_columns_reach_the_worker(client: TestClient, worker: Answers, settings: ServiceSettings) -> None:
    (settings.sources / "a.csv").write_text("body\nhello\n")
    asked = worker(200, {"counts": [COUNT]})
    client.get("/sources/a.csv", params={"tokenizer": "characters", "columns[text]": "body"})
    told = json.loads(asked[0].content)
    assert told["sources"][0]["columns"] == {"text": "body"}
    assert not {"model", "checkpoint"} & told.keys()


def test_without_a_tokenizer_nobody_is_asked(client: TestClient, worker: Answers) -> None:
    asked = worker(200, {})
    for found in (client.get("/sources/tale.md").json(), client.get("/sources").json()["data"][0]):
        assert (found["num_tokens"], found["is_estimate"]) == (None, False)
    assert asked == []


def test_a_page_is_asked_about_at_once_but_for_what_is_not_known(
    client: TestClient, worker: Answers, settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "GLANCE_BYTES", len(TALE.encode()))
    (settings.sources / "large.md").write_text("x" * 2 * len(TALE.encode()))
    (settings.sources / "empty.md").write_text("")
    (settings.sources / "a.md").write_text("short")
    asked = worker(200, {"counts": [COUNT, {**COUNT, "num_tokens": 99, "is_estimate": True}]})
    found = client.get("/sources?tokenizer=characters").json()["data"]
    assert [(row["name"], row["num_tokens"], row["is_estimate"]) for row in found] == [
        ("a.md", 17, False),
        ("empty.md", None, False),
        ("large.md", None, False),
        ("tale.md", 99, True),
    ]
    assert [source["name"] for source in json.loads(asked[0].content)["sources"]] == ["a.md", "tale.md"]


def test_what_cannot_be_encoded_is_refused_by_name_and_passed_over_in_a_list(
    client: TestClient, worker: Answers
) -> None:
    worker(200, {"counts": [REFUSED]})
    answer = client.get("/sources/tale.md?tokenizer=characters")
    assert (answer.status_code, answer.json()["code"], answer.json()["detail"]) == (
        422,
        "generation_invalid",
        "It cannot.",
    )
    assert client.get("/sources?tokenizer=characters").json()["data"][0]["num_tokens"] is None


@pytest.mark.parametrize("address", ["/sources", "/sources/tale.md"])
def test_without_a_worker_it_is_said(client: TestClient, address: str, enlist: Enlist) -> None:
    for _ in range(2):
        answer = client.get(address, params={"tokenizer": "characters"})
        assert (answer.status_code, answer.json()["code"]) == (503, "worker_unavailable")
        enlist("w1", "http://127.0.0.1:1")


@pytest.mark.parametrize("address", ["/sources", "/sources/tale.md"])
def test_a_tokenizer_that_nobody_knows_is_the_workers_sentence(
    client: TestClient, worker: Answers, address: str
) -> None:
    worker(422, {"code": "config_invalid", "message": "tokenizer: there is no tokenizer 'nothing'"})
    answer = client.get(address, params={"tokenizer": "nothing"})
    assert (answer.status_code, answer.json()["code"]) == (422, "config_invalid")
    assert answer.json()["detail"] == "tokenizer: there is no tokenizer 'nothing'"


@pytest.mark.parametrize("name", ["../models", "/etc", "a b"])
def test_a_name_that_leads_elsewhere_is_not_passed_on(client: TestClient, worker: Answers, name: str) -> None:
    asked = worker(200, {"counts": []})
    answer = client.get("/sources/tale.md", params={"tokenizer": name})
    assert (answer.status_code, answer.json()["code"]) == (422, "model_forbidden")
    assert asked == []


@pytest.mark.parametrize("address", ["/sources", "/sources/tale.md"])
def test_a_worker_that_takes_too_long_is_not_waited_for(
    client: TestClient, worker: Answers, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker(200, {})
    for name, value in (("SECONDS", 0.05), ("LIST_SECONDS", 0.05), ("LATE_SECONDS", 0.05)):
        monkeypatch.setattr(token_counts, name, value)

    async def slow(_: httpx2.Request) -> httpx2.Response:
        await anyio.sleep(600)
        raise AssertionError

    inference: Any = client.app.state.inference  # type: ignore[attr-defined]
    inference._http = httpx2.AsyncClient(transport=httpx2.MockTransport(slow))
    answer = client.get(address, params={"tokenizer": "characters"})
    found = answer.json()
    assert answer.status_code == 200
    assert (found["data"][0] if "data" in found else found)["num_tokens"] is None
