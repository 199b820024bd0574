from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from client.api import Ratchet
from client.errors import ApiError, ClientError
from tests.unit.client.conftest import Ratchet as Run

FACTS: dict[str, Any] = {
    "name": "chat.jsonl",
    "size_bytes": 2048,
    "format": "jsonl",
    "kind": "chat",
    "num_rows": 1234,
    "num_bad_rows": 1,
    "bad_rows": [{"number": 7, "reason": "has no \x1b'messages'"}],
    "num_characters": 5000,
    "sha256": "0" * 64,
    "error": None,
}


class Fake:
    """A service that answers in memory, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[httpx2.Request] = []
        self.answers: list[httpx2.Response] = []

    def lay(self, status: int, document: Any = None) -> None:
        self.answers.append(httpx2.Response(status, json=document) if document is not None else httpx2.Response(status))

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.asked.append(request)
        return self.answers.pop(0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(
        "client.commands.sources.Ratchet", lambda: Ratchet("http://ratchet.test", "", transport=transport)
    )
    transport = httpx2.MockTransport(fake.answer)
    return fake


@pytest.fixture
def api(fake: Fake) -> Iterator[Ratchet]:
    with Ratchet("http://ratchet.test", "", transport=httpx2.MockTransport(fake.answer)) as api:
        yield api


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    path.write_bytes(b"0123456789" * 100_000)
    return path


def test_all_pages_are_one_list(api: Ratchet, fake: Fake) -> None:
    fake.lay(200, {"data": [{"name": "a"}, {"name": "b"}], "has_more": True})
    fake.lay(200, {"data": [{"name": "c"}], "has_more": False})
    assert [row["name"] for row in api.sources()] == ["a", "b", "c"]
    assert [request.url.params.get("after") for request in fake.asked] == [None, "b"]


def test_a_file_is_sent_in_pieces_and_is_not_to_replace_another(api: Ratchet, fake: Fake, file: Path) -> None:
    fake.lay(201, FACTS)
    seen: list[int] = []
    assert api.upload_source(file, on_progress=seen.append) == FACTS
    (request,) = fake.asked
    assert (request.method, request.url.raw_path) == ("PUT", b"/sources/chat.jsonl")
    assert (request.headers["Content-Length"], request.headers["If-None-Match"]) == ("1000000", "*")
    assert request.content == file.read_bytes()
    assert seen == sorted(seen)
    assert (len(seen), seen[-1]) == (4, 1_000_000)


def test_a_name_columns_and_replacing_are_said(api: Ratchet, fake: Fake, file: Path) -> None:
    fake.lay(200, FACTS)
    api.upload_source(file, "deep/../my chat.jsonl", replace=True, columns={"messages": "turns"})
    (request,) = fake.asked
    assert request.url.raw_path == b"/sources/deep%2F..%2Fmy%20chat.jsonl?columns%5Bmessages%5D=turns"
    assert "If-None-Match" not in request.headers


def test_the_answer_is_waited_for_as_long_as_the_service_may_read(api: Ratchet, fake: Fake, file: Path) -> None:
    fake.lay(201, FACTS)
    api.upload_source(file)
    assert fake.asked[0].extensions["timeout"]["read"] > 300


def test_one_source_is_looked_at_and_removed(api: Ratchet, fake: Fake) -> None:
    fake.lay(200, FACTS)
    fake.lay(204)
    assert api.source("deep/qa.csv", prompt="q") == FACTS
    api.delete_source("deep/qa.csv")
    assert [request.url.raw_path for request in fake.asked] == [
        b"/sources/deep%2Fqa.csv?columns%5Bprompt%5D=q",
        b"/sources/deep%2Fqa.csv",
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, r"There is no file .*x\.txt\."),
        (lambda path: path.mkdir(), "is no file"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    api: Ratchet, tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "x.txt")
    with pytest.raises(ClientError, match=said):
        api.upload_source(tmp_path / "x.txt")


def test_a_file_that_shrinks_on_the_way_is_not_taken_for_whole(api: Ratchet, fake: Fake, file: Path) -> None:
    def shrink(num_bytes: int) -> None:
        with file.open("r+b") as cut:
            cut.truncate(num_bytes)

    with pytest.raises(ClientError, match="became shorter while it was sent"):
        api.upload_source(file, on_progress=shrink)


def test_a_refusal_of_the_service_is_raised(api: Ratchet, fake: Fake, file: Path) -> None:
    fake.lay(422, {"code": "source_no_rows", "detail": "source 'x' has no row that can be used: line 1 is no JSON"})
    with pytest.raises(ApiError, match="line 1 is no JSON"):
        api.upload_source(file)


# The command.


def test_without_a_word_more_the_sources_are_listed(fake: Fake, ratchet: Run) -> None:
    text = {**FACTS, "name": "tale.md", "format": "text", "kind": "text", "num_rows": 3, "num_bad_rows": 0}
    unread = {**dict.fromkeys(FACTS), "name": "huge.jsonl", "size_bytes": 5 << 30, "format": "jsonl"}
    bad = {**unread, "name": "bad.csv", "error": "it has no rows"}
    listed = {"data": [FACTS, text, unread, bad], "has_more": False}
    fake.lay(200, listed)
    code, out, _ = ratchet("sources")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines() if line.strip()][2:] == [
        ["chat.jsonl", "1,234", "chat"],
        ["tale.md", "text", "0"],
        ["huge.jsonl", "–", "–"],
        ["bad.csv", "–", "–"],
    ]
    assert "it has no rows" in out
    fake.lay(200, listed)
    assert json.loads(ratchet("sources", "--json")[1]) == listed["data"]


def test_an_empty_list_says_how_to_add_one(fake: Fake, ratchet: Run) -> None:
    fake.lay(200, {"data": [], "has_more": False})
    assert ratchet("sources")[1].endswith("sources add FILE\n")


def test_a_file_is_added_and_what_is_in_it_is_said(fake: Fake, ratchet: Run, file: Path) -> None:
    fake.lay(201, FACTS)
    code, out, err = ratchet("sources", "add", str(file), "--name", "deep/chat.jsonl", "--column", "messages=turns")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "chat.jsonl: 1,234 chat rows, 5,000 characters, 2.0 KiB",
        "1 cannot be used, and are left out:",
        "  line 7 has no \N{REPLACEMENT CHARACTER}'messages'",
    ]
    assert fake.asked[0].url.raw_path == b"/sources/deep%2Fchat.jsonl?columns%5Bmessages%5D=turns"


def test_one_that_is_there_is_replaced_only_if_it_is_said(fake: Fake, ratchet: Run, file: Path) -> None:
    fake.lay(412, {"code": "source_exists", "detail": "source 'chat.jsonl' is there already"})
    assert ratchet("sources", "add", str(file)) == (1, "", "source 'chat.jsonl' is there already; --replace does so.\n")
    fake.lay(200, FACTS)
    assert ratchet("sources", "add", str(file), "--replace", "--json")[0] == 0
    assert "If-None-Match" not in fake.asked[1].headers


@pytest.mark.parametrize("column", ["text", "=body", "text=", ""])
def test_a_column_without_its_name_is_no_command(fake: Fake, ratchet: Run, file: Path, column: str) -> None:
    code, _, err = ratchet("sources", "add", str(file), "--column", column)
    assert (code, fake.asked) == (2, [])
    assert "FIELD=NAME" in err


def test_one_is_shown_and_one_is_removed(fake: Fake, ratchet: Run) -> None:
    fake.lay(200, {**FACTS, "format": "parquet"})
    assert ratchet("sources", "show", "chat.parquet")[1].splitlines()[-1].startswith("  row 7 has no")
    fake.lay(200, {**FACTS, "error": "source 'x' is empty", "bad_rows": [], "num_bad_rows": None})
    assert ratchet("sources", "show", "x")[1] == "source 'x' is empty\n"
    fake.lay(204)
    assert ratchet("sources", "rm", "chat.jsonl") == (0, "Source chat.jsonl is gone.\n", "")
    fake.lay(409, {"code": "source_in_use", "detail": "It is in use."})
    assert ratchet("sources", "rm", "chat.jsonl") == (1, "", "It is in use.\n")


def test_tokens_are_counted_under_a_tokenizer_that_is_named(fake: Fake, ratchet: Run) -> None:
    rows = [
        {**FACTS, "name": "a.jsonl", "num_tokens": 1234, "is_estimate": False},
        {**FACTS, "name": "b.jsonl", "num_tokens": 5_000_000, "is_estimate": True},
        {**FACTS, "name": "c.jsonl", "num_tokens": None, "is_estimate": False},
    ]
    fake.lay(200, {"data": rows, "has_more": False})
    code, out, _ = ratchet("sources", "--tokenizer", "org/model")
    assert code == 0
    assert "tokens" in out.splitlines()[1]
    for name, told in (("a.jsonl", " 1,234 "), ("b.jsonl", " about 5,000,000 "), ("c.jsonl", " – ")):
        [line] = [line for line in out.splitlines() if name in line]
        assert told in line
    assert fake.asked[0].url.params["tokenizer"] == "org/model"
    fake.lay(200, rows[1])
    code, out, _ = ratchet("sources", "show", "b.jsonl", "--tokenizer", "gpt2", "--column", "text=body")
    assert out.splitlines()[0] == "b.jsonl: 1,234 chat rows, 5,000 characters, about 5,000,000 tokens, 2.0 KiB"
    assert dict(fake.asked[1].url.params) == {"tokenizer": "gpt2", "columns[text]": "body"}
    fake.lay(503, {"code": "worker_unavailable", "detail": "No worker is at work."})
    assert ratchet("sources", "--tokenizer", "gpt2") == (1, "", "No worker is at work.\n")


def test_without_a_tokenizer_no_tokens_are_asked_for(fake: Fake, ratchet: Run) -> None:
    fake.lay(200, {"data": [{**FACTS, "num_tokens": None, "is_estimate": False}], "has_more": False})
    assert "tokens" not in ratchet("sources")[1]
    assert "tokenizer" not in fake.asked[0].url.params
