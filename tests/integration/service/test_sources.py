"""Sources over HTTP: what is at hand, what comes, what goes, and what stays whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from client.api import Ratchet
from client.errors import ApiError
from core.sources import facts as source_facts
from core.sources.files import SourceFolder
from jobs.tables import Job
from service import uploads
from service.routes import sources as routes
from service.settings import ServiceSettings
from tests.faults import ServiceProcess, fill, on_a_disk_of, on_a_sealed_disk
from tests.integration.service.conftest import BODY, TALE, Hand, Running, Serve, until

CHAT = "".join(
    json.dumps({"messages": [{"role": "user", "content": f"{n}+1?"}, {"role": "assistant", "content": str(n + 1)}]})
    + "\n"
    for n in range(5)
)

BAD = '{"text": \n{"prompt": "a"}\n{"messages": []}\n{}\n'


@pytest.fixture
def root(settings: ServiceSettings) -> Path:
    return settings.sources


def hidden_in(root: Path) -> list[Path]:
    return list(root.glob("**/.*"))


# What is at hand.


def test_a_list_has_the_facts_of_what_is_there(client: TestClient, root: Path) -> None:
    (root / "chat.jsonl").write_text(CHAT + "{}\n")
    (root / "bad.jsonl").write_text(BAD)
    rows = {row["name"]: row for row in client.get("/sources").json()["data"]}
    chat = rows["chat.jsonl"]
    assert (chat["format"], chat["kind"], chat["num_rows"], chat["num_bad_rows"]) == ("jsonl", "chat", 5, 1)
    assert chat["bad_rows"][0]["number"] == 6
    assert (rows["tale.md"]["format"], rows["tale.md"]["kind"], rows["tale.md"]["error"]) == ("text", "text", None)
    assert rows["bad.jsonl"]["error"].startswith("source 'bad.jsonl' has no row that can be used: line 1 is no JSON")
    assert [row["number"] for row in rows["bad.jsonl"]["bad_rows"]] == [1, 2, 3, 4]


def test_a_list_comes_in_pages(client: TestClient, root: Path) -> None:
    for name in "abcde":
        (root / name).write_text("x")
    seen, after = [], None
    while True:
        page = client.get("/sources", params={"limit": 2, **({"after": after} if after else {})}).json()
        seen += [row["name"] for row in page["data"]]
        if not page["has_more"]:
            break
        after = seen[-1]
    assert seen == ["a", "b", "c", "d", "e", "tale.md"]
    assert client.get("/sources", params={"after": "d0"}).json()["data"][0]["name"] == "e"


def test_a_list_reads_no_large_file_but_tells_what_is_known_of_it(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "GLANCE_BYTES", 100)
    listed = next(row for row in client.get("/sources").json()["data"])
    assert (listed["size_bytes"], listed["format"], listed["num_rows"], listed["error"]) == (
        len(TALE),
        "text",
        None,
        None,
    )
    assert client.get("/sources/tale.md").json()["num_characters"] == len(TALE)
    assert client.get("/sources").json()["data"][0]["num_characters"] == len(TALE)


def test_one_page_reads_no_more_than_it_may(client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "LISTING_BYTES", 1000)
    for name in "abcde":
        (root / f"{name}.txt").write_text(name * 300)
    for known in ([1, 1, 1, None, None, None], [1, 1, 1, 1, 1, None], [1, 1, 1, 1, 1, None]):
        assert [row["num_rows"] for row in client.get("/sources").json()["data"]] == known


def test_one_that_cannot_be_used_is_not_read_again_until_it_changes(
    client: TestClient, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "bad.jsonl").write_text(BAD)
    read = []
    monkeypatch.setattr(
        source_facts, "facts_of", lambda *given, real=source_facts.facts_of: read.append(1) or real(*given)
    )
    for _ in range(3):
        assert client.get("/sources/bad.jsonl").json()["error"]
    assert len(read) == 1
    (root / "bad.jsonl").write_text(CHAT)
    assert client.get("/sources/bad.jsonl").json()["num_rows"] == 5


def test_one_source_is_looked_at_with_columns(client: TestClient, root: Path) -> None:
    (root / "deep").mkdir()
    (root / "deep" / "qa.csv").write_text("q,a\n1,2\n")
    assert "it has 'q', 'a' and needs" in client.get("/sources/deep/qa.csv").json()["error"]
    found = client.get("/sources/deep/qa.csv", params={"columns[prompt]": "q", "columns[completion]": "a"}).json()
    assert (found["kind"], found["num_rows"], found["error"]) == ("completion", 1, None)
    answer = client.get("/sources/deep/qa.csv", params={"columns[txet]": "q"})
    assert (answer.status_code, answer.json()["code"], answer.json()["errors"][0]["field"]) == (
        422,
        "source_columns",
        "columns",
    )


def test_a_source_that_is_not_there_is_a_404(client: TestClient) -> None:
    for name in ("nothing.md", "deep/nothing.md"):
        answer = client.get(f"/sources/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "source_not_found")


def test_few_are_read_for_their_facts_at_a_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_AT_ONCE", 0)
    monkeypatch.setattr(routes, "GLANCE_BYTES", 10)
    answer = client.get("/sources/tale.md")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_at_once")
    answer = client.put("/sources/new.md", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_at_once")


# What comes.


def test_a_new_source_is_answered_with_its_facts_and_its_place(client: TestClient, root: Path) -> None:
    answer = client.put("/sources/deep/er/my chat.jsonl", content=CHAT.encode())
    assert (answer.status_code, answer.headers["location"]) == (201, "/sources/deep/er/my%20chat.jsonl")
    found = answer.json()
    assert (found["name"], found["kind"], found["num_rows"]) == ("deep/er/my chat.jsonl", "chat", 5)
    assert (root / "deep/er/my chat.jsonl").read_text() == CHAT
    assert client.get(answer.headers["location"]).json() == {**found, "num_tokens": None, "is_estimate": False}
    assert hidden_in(root) == []
    longer = client.put("/sources/deep/longer.jsonl", content=CHAT.encode() * 20)
    assert client.post("/jobs", json={**BODY, "source": longer.json()["name"]}).status_code == 201


def test_one_that_was_there_is_replaced(client: TestClient, root: Path) -> None:
    assert client.get("/sources/tale.md").json()["num_characters"] == len(TALE)
    answer = client.put("/sources/tale.md", content=b"another one")
    assert (answer.status_code, answer.json()["num_characters"]) == (200, 11)
    assert client.get("/sources/tale.md").json()["num_characters"] == 11
    refused = client.put("/sources/tale.md", content=b"a third", headers={"If-None-Match": "*"})
    assert (refused.status_code, refused.json()["code"]) == (412, "source_exists")
    assert (root / "tale.md").read_text() == "another one"
    assert client.put("/sources/new.md", content=b"new", headers={"If-None-Match": "*"}).status_code == 201


def test_a_body_far_larger_than_any_request_may_be_arrives(client: TestClient, root: Path) -> None:
    content = b"0123456789abcdef" * (3 << 16)
    assert client.put("/sources/large.txt", content=content).status_code == 201
    pieces = client.put("/sources/pieces.txt", content=(content[at : at + 7000] for at in range(0, len(content), 7000)))
    assert (pieces.status_code, pieces.json()["size_bytes"]) == (201, 3 << 20)
    assert (root / "pieces.txt").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        (
            "bad.jsonl",
            BAD.encode(),
            "source_no_rows",
            "line 1 is no JSON: Expecting value at character 10; line 2 has no",
        ),
        ("empty.md", b"", "source_empty", "nothing to learn from"),
        ("blank.md", b" \n", "source_empty", "nothing to learn from"),
        ("empty.jsonl", b"\n\n", "source_empty", "nothing to learn from"),
        ("latin.md", b"caf\xe9", "source_not_text", "offset 3"),
        ("x.jsonl.gz", b"\x1f\x8b\x08", "source_not_readable", "is compressed (gzip): unpack it first"),
        ("x.parquet", b"PAR1", "source_not_readable", "cannot be read as Parquet"),
        ("x.csv", b"q,a\n1,2", "source_columns", "it has 'q', 'a'"),
    ],
)
def test_of_what_cannot_be_used_nothing_is_kept(
    client: TestClient, root: Path, name: str, content: bytes, code: str, said: str
) -> None:
    answer = client.put(f"/sources/new/folder/{name}", content=content)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert said in answer.json()["detail"]
    assert sorted(root.glob("**/*")) == [root / "tale.md"]
    replacing = client.put("/sources/tale.md", content=b"\xff")
    assert replacing.status_code == 422
    assert (root / "tale.md").read_text() == TALE


def test_the_refusal_of_rows_lists_them(client: TestClient) -> None:
    told = client.put("/sources/bad.jsonl", content=BAD.encode()).json()
    assert told["bad_rows"][1] == {"number": 2, "reason": "has no 'completion'"}
    assert len(told["bad_rows"]) == 4


def test_columns_come_with_the_file(client: TestClient) -> None:
    columns = {"columns[prompt]": "q", "columns[completion]": "a"}
    answer = client.put("/sources/qa.csv", content=b"q,a\n1,2", params=columns)
    assert (answer.status_code, answer.json()["kind"]) == (201, "completion")


HOSTILE = (
    "..%2Fx.md",
    "%2e%2e%2fx.md",
    "deep%2F..%2F..%2Fx.md",
    "%2Fetc%2Fpasswd",
    "a%00b",
    "..%5Cx.md",
    ".hidden",
    "deep/.hidden/x.md",
    "x" * 256,
    "a%0Ab",
    "",
    ".",
    "/".join("a" * 20),
    "/".join(["a" * 200] * 6),
)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_no_name_leads_out_or_is_hidden(client: TestClient, root: Path, method: str, name: str) -> None:
    answer = client.request(method, f"/sources/{name}", content=b"x")
    # What the path of a URL cannot carry does not even reach the route.
    assert answer.status_code in {404, 405, 422}
    assert answer.json()["code"] in {"source_forbidden", "source_not_found", "not_found", "method_not_allowed"}
    assert sorted(root.glob("**/*")) == [root / "tale.md"]
    assert not (root.parent / "x.md").exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_links_and_other_things_stay_as_they_are(client: TestClient, root: Path, method: str) -> None:
    secret = root.parent / "secret"
    secret.mkdir()
    (secret / "x.md").write_text("theirs")
    (root / "out").symlink_to(secret)
    (root / "link.md").symlink_to(secret / "x.md")
    (root / "folder.md").mkdir()
    os.mkfifo(root / "pipe.md")
    for name in ("out/x.md", "out/new.md", "link.md", "folder.md", "pipe.md", "tale.md/x.md"):
        answer = client.request(method, f"/sources/{name}", content=b"mine")
        assert answer.status_code in {404, 422}, name
        assert answer.json()["code"] in {"source_forbidden", "source_not_found"}
    assert [path.read_text() for path in secret.iterdir()] == ["theirs"]
    assert (root / "link.md").is_symlink()
    assert hidden_in(root) == []


def test_a_form_is_told_to_send_the_file_itself(client: TestClient) -> None:
    answer = client.put("/sources/x.md", files={"file": ("x.md", b"hello")})
    assert (answer.status_code, "curl -T" in answer.json()["detail"]) == (422, True)


def test_a_body_that_is_not_the_file_itself_is_refused(client: TestClient, root: Path) -> None:
    for encoding in ("gzip", "br", "identity, gzip"):
        answer = client.put("/sources/x.md", content=b"hello", headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["code"]) == (415, "content_encoding")
        assert "without Content-Encoding" in answer.json()["detail"]
    assert not (root / "x.md").exists()
    answer = client.put("/sources/x.md", content=b"hello", headers={"Content-Encoding": "Identity"})
    assert answer.status_code == 201


def test_no_source_gets_the_address_of_anothers_preview(client: TestClient, root: Path) -> None:
    for name in ("tale.md/preview", "deep/preview", "deep/./preview"):
        answer = client.put(f"/sources/{name.replace('/', '%2F')}", content=b"hello")
        assert (answer.status_code, answer.json()["code"]) == (422, "source_forbidden")
        assert "so give it another name" in answer.json()["detail"]
    assert not (root / "deep").exists()
    assert client.put("/sources/preview", content=b"hello").status_code == 201
    assert client.get("/sources/preview").json()["num_characters"] == 5
    # One that was put there by hand can be removed.
    (root / "deep").mkdir()
    (root / "deep" / "preview").write_text("hello")
    assert client.delete("/sources/deep/preview").status_code == 204


def test_a_table_whose_columns_are_called_otherwise_is_listed_with_what_it_needs(client: TestClient) -> None:
    columns = {"columns[prompt]": "q", "columns[completion]": "a"}
    assert client.put("/sources/qa.csv", content=b"q,a\n1,2", params=columns).status_code == 201
    (listed,) = (source for source in client.get("/sources").json()["data"] if source["name"] == "qa.csv")
    assert (listed["size_bytes"], listed["format"]) == (7, "csv")
    assert listed["error"] == (
        "source 'qa.csv' needs its columns to be named: it has 'q', 'a' and needs 'text', 'prompt' and 'completion', "
        "'messages', or 'prompt', 'chosen' and 'rejected'; a job says which is which in columns, such as "
        '{"text": "q"}'
    )


def test_a_file_may_have_so_many_bytes_and_no_more(serve: Serve, root: Path) -> None:
    client = serve(max_source_bytes=1000)
    assert client.put("/sources/fits.md", content=b"x" * 1000).status_code == 201
    for content in (b"x" * 1001, iter([b"x" * 600, b"x" * 600])):
        answer = client.put("/sources/large.md", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "source_too_large")
        assert "1000 bytes" in answer.json()["detail"]
    assert client.put("/sources/large.md", content=b"", headers={"Content-Length": "9" * 17}).status_code == 413
    assert sorted(path.name for path in root.iterdir()) == ["fits.md", "tale.md"]


def test_all_files_together_have_a_quota_in_which_a_replaced_one_counts_once(serve: Serve, root: Path) -> None:
    client = serve(sources_quota_bytes=len(TALE) + 1000)
    assert client.put("/sources/a.md", content=b"x" * 900).status_code == 201
    for content in (b"x" * 101, iter([b"x" * 50, b"x" * 51])):
        refused = client.put("/sources/b.md", content=content)
        assert (refused.status_code, refused.json()["code"]) == (413, "source_quota")
    assert client.put("/sources/a.md", content=b"y" * 1000).status_code == 200
    assert client.delete("/sources/a.md").status_code == 204
    assert client.put("/sources/b.md", content=b"x" * 1000).status_code == 201


def test_what_an_upload_left_long_ago_is_swept(client: TestClient, root: Path) -> None:
    for name, age in (("old", 25 * 3600), ("young", 3600)):
        path = root / f"{uploads.HIDDEN_PREFIX}{name}"
        path.write_text("x")
        os.utime(path, (time.time() - age,) * 2)
    assert client.put("/sources/new.md", content=b"x").status_code == 201
    assert [path.name for path in hidden_in(root)] == [".upload-young"]


# What a job needs stays.


def test_a_source_that_an_unfinished_job_names_stays_until_it_has_ended(
    client: TestClient, submit: Callable[..., Job], hand: Hand, root: Path
) -> None:
    submit()

    def refused() -> bool:
        answers = client.put("/sources/tale.md", content=b"x"), client.delete("/sources/tale.md")
        return {(answer.status_code, answer.json()["code"]) for answer in answers} == {(409, "source_in_use")}

    assert refused()
    job = hand.claim()
    assert refused()
    assert (root / "tale.md").read_text() == TALE
    hand.finish(job)
    assert client.put("/sources/tale.md", content=b"x").status_code == 200


def test_however_a_job_names_it(client: TestClient, submit: Callable[..., Job]) -> None:
    config = client.post("/jobs", json=BODY).json()["config"]
    job = client.get("/jobs").json()["data"][0]["id"]
    assert client.post(f"/jobs/{job}/cancel").status_code == 200
    for named in ({"source": "./tale.md"}, {"source": "x.md", "sources": [{"source": "x.md"}, {"source": "tale.md"}]}):
        waiting = submit(config={**config, **named})
        assert client.delete("/sources/tale.md").status_code == 409
        assert client.post(f"/jobs/{waiting.id}/cancel").status_code == 200
    assert client.delete("/sources/tale.md").status_code == 204


def test_a_missing_source_of_a_waiting_job_can_be_sent_again(
    client: TestClient, submit: Callable[..., Job], root: Path
) -> None:
    submit()
    (root / "tale.md").unlink()
    assert client.put("/sources/tale.md", content=TALE.encode()).status_code == 201


def test_a_source_goes_for_good(client: TestClient, root: Path) -> None:
    answer = client.delete("/sources/tale.md")
    assert (answer.status_code, answer.content) == (204, b"")
    assert not (root / "tale.md").exists()
    assert client.delete("/sources/tale.md").status_code == 404


# What happens on the way.


HEAD = b"PUT /sources/%s HTTP/1.1\r\nHost: localhost\r\n"


def connect(running: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=10)


def test_a_sender_that_leaves_leaves_nothing(running: Running, root: Path) -> None:
    with connect(running) as connection:
        connection.sendall(HEAD % b"tale.md" + b"Content-Length: 3000000\r\n\r\n" + b"x" * 2_000_000)
        until(lambda: len(hidden_in(root)) == 1)
    until(lambda: hidden_in(root) == [])
    assert (root / "tale.md").read_text() == TALE


@pytest.fixture
def impatient(run_service: Callable[..., AbstractContextManager[Running]]) -> Iterator[Running]:
    with run_service(body_seconds=0.5) as running:
        yield running


def test_a_sender_that_stalls_or_drips_is_let_go(impatient: Running, root: Path) -> None:
    for drip in (False, True):
        with connect(impatient) as connection:
            connection.sendall(HEAD % b"tale.md" + b"Content-Length: 30000\r\n\r\n" + b"x" * 1000)
            begun = time.monotonic()
            connection.settimeout(0.1)
            answer = b""
            while not answer and time.monotonic() < begun + 8:
                try:
                    if drip:
                        connection.sendall(b"x")
                    answer = connection.recv(65_536)
                except TimeoutError:
                    continue
            assert b" 408 " in answer.split(b"\r\n")[0]
            assert b"connection: close" in answer.lower()
    until(lambda: hidden_in(root) == [])
    assert (root / "tale.md").read_text() == TALE


def test_a_sender_that_is_slow_but_steady_may_take_its_time(
    run_service: Callable[..., AbstractContextManager[Running]], root: Path
) -> None:
    with run_service(body_seconds=1.5) as patient, connect(patient) as connection:
        connection.sendall(HEAD % b"slow.md" + b"Connection: close\r\nContent-Length: 200000\r\n\r\n")
        for _ in range(20):
            time.sleep(0.15)  # Twice what any other body may take, in all.
            connection.sendall(b"x" * 10_000)
        assert b" 201 " in connection.recv(65_536).split(b"\r\n")[0]
    assert (root / "slow.md").stat().st_size == 200_000


def test_an_answer_before_the_end_of_the_body_closes_the_connection(running: Running) -> None:
    with connect(running) as connection:
        connection.sendall(HEAD % b".hidden" + b"Content-Length: 99999999\r\n\r\n" + b"x" * 1000)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert b" 422 " in answer.split(b"\r\n")[0]
    assert b"source_forbidden" in answer


@pytest.fixture
def service(settings: ServiceSettings, tmp_path: Path) -> Iterator[ServiceProcess]:
    service = ServiceProcess(tmp_path, RATCHET_SOURCES=str(settings.sources))
    yield service
    service.end()


def test_a_service_killed_in_an_upload_leaves_the_old_file_and_nothing_to_be_seen(
    service: ServiceProcess, root: Path
) -> None:
    with socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2])), timeout=10) as connection:
        connection.sendall(HEAD % b"tale.md" + b"Content-Length: 9000000\r\n\r\n" + b"x" * 5_000_000)
        until(lambda: any(path.stat().st_size > 2_000_000 for path in hidden_in(root)))
        service.process.send_signal(signal.SIGKILL)
        service.process.wait()
    assert (root / "tale.md").read_text() == TALE
    assert SourceFolder(root).names() == ["tale.md"]
    assert len(hidden_in(root)) == 1


def test_an_upload_takes_no_memory(service: ServiceProcess, root: Path) -> None:
    service.http.put("/sources/small.txt", content=b"x")
    before = service.peak_bytes()
    piece = b"0123456789abcdef" * (1 << 16)
    answer = service.http.put("/sources/large.txt", content=(piece for _ in range(100)), timeout=60)
    assert (answer.status_code, answer.json()["size_bytes"]) == (201, 100 << 20)
    assert service.peak_bytes() - before < 40 << 20


def test_readers_see_the_old_file_or_the_new_one_whole(client: TestClient, root: Path) -> None:
    contents = [bytes([letter]) * 200_000 for letter in b"ab"]
    seen = set()
    with (root / "tale.md").open("rb") as old:
        for content in contents * 5:
            assert client.put("/sources/tale.md", content=content).status_code == 200
            seen.add((root / "tale.md").read_bytes())
        assert old.read() == TALE.encode()
    assert seen == set(contents)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    service = ServiceProcess(
        tmp_path, before=on_a_disk_of("70m", place), RATCHET_SOURCES=str(place), RATCHET_DATA=str(tmp_path)
    )
    try:
        answer = service.http.put("/sources/large.txt", content=b"x" * (8 << 20))
        assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
        inside = service.sees(place)
        assert list(inside.iterdir()) == []
        assert service.http.put("/sources/small.txt", content=b"x" * (1 << 20)).status_code == 201
        fill(inside)
        refused = service.http.put("/sources/other.txt", content=b"x")
        assert (refused.status_code, refused.json()["code"]) == (503, "disk_full")
    finally:
        service.end()


def test_a_disk_that_cannot_be_written_is_said(tmp_path: Path, settings: ServiceSettings, root: Path) -> None:
    service = ServiceProcess(tmp_path, before=on_a_sealed_disk(root), RATCHET_SOURCES=str(root))
    try:
        for answer in (service.http.put("/sources/new.md", content=b"x"), service.http.delete("/sources/tale.md")):
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_error")
            assert "Read-only file system" in answer.json()["detail"]
    finally:
        service.end()


def test_a_name_is_told_as_it_is_on_the_disk(client: TestClient, root: Path) -> None:
    answer = client.put("/sources/deep%2F%2F.%2Fx.md", content=b"x")
    assert (answer.json()["name"], answer.headers["location"]) == ("deep/x.md", "/sources/deep/x.md")
    assert (root / "deep" / "x.md").exists()


def test_the_schema_says_that_the_body_is_a_file(client: TestClient) -> None:
    schema: dict[str, Any] = client.get("/openapi.json").json()
    put = schema["paths"]["/sources/{name}"]["put"]
    assert "application/octet-stream" in put["requestBody"]["content"]
    assert {"200", "201"} <= set(put["responses"])
    assert "PUT /sources/{name}" in client.get("/docs").text


def test_a_person_sends_looks_at_and_removes_a_source(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(CHAT)
    with Ratchet(running.url, "") as api:
        assert api.upload_source(path, "deep/chat.jsonl")["num_rows"] == 5
        assert [row["name"] for row in api.sources()] == ["deep/chat.jsonl", "tale.md"]
        with pytest.raises(ApiError, match="is there already"):
            api.upload_source(path, "deep/chat.jsonl")
        api.delete_source("deep/chat.jsonl")
        assert [row["name"] for row in api.sources()] == ["tale.md"]


def test_a_sender_of_too_much_learns_why_though_nobody_reads_it_all(
    run_service: Callable[..., AbstractContextManager[Running]], tmp_path: Path
) -> None:
    path = tmp_path / "large.txt"
    path.write_bytes(b"x" * (64 << 20))
    with run_service(max_source_bytes=1 << 20) as running, Ratchet(running.url, "") as api:
        for _ in range(5):
            with pytest.raises(ApiError, match="larger than the 1048576 bytes"):
                api.upload_source(path)
