from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from pydantic import SecretStr
from starlette.testclient import TestClient

from service import app as service_app
from tests.integration.service.conftest import BODY, Running, Serve

KEY = "s3cret-ключ"
OPEN = {"/livez", "/readyz"}


@pytest.fixture
def guarded(serve: Serve) -> TestClient:
    return serve(api_key=SecretStr(KEY))


def routes(client: TestClient) -> Iterator[tuple[str, str]]:
    schema = client.get("/openapi.json", headers={"X-API-Key": KEY.encode()}).json()
    for path, operations in schema["paths"].items():
        for method in operations:
            yield method.upper(), path.replace("{job_id}", "job_x").replace("{ref}", "x")


def test_every_route_asks_for_the_key(guarded: TestClient) -> None:
    wrong = [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}".encode()}]
    asked = [*routes(guarded), ("GET", "/docs"), ("GET", "/openapi.json"), ("GET", "/nothing"), ("PUT", "/jobs")]
    assert len(asked) > 15
    for method, path in asked:
        for headers in wrong:
            answer = guarded.request(method, path, headers=headers)
            if path in OPEN:
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path)
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["code"] == "unauthorized"
        for headers in ({"X-API-Key": KEY.encode()}, {"Authorization": f"bearer {KEY}".encode()}):
            assert guarded.request(method, path, headers=headers).status_code != 401


def test_the_page_needs_no_key(guarded: TestClient) -> None:
    assert guarded.get("/").status_code == guarded.get("/web/app.js").status_code == 200
    assert guarded.get("/web/nothing.js").status_code == 404
    assert guarded.get("/web/../jobs").status_code == 401
    assert guarded.get("/web/%2e%2e/jobs").status_code == 404


def test_the_schema_says_what_is_asked_for(client: TestClient) -> None:
    schema = client.get("/openapi.json").json()
    assert schema["paths"]["/jobs"]["post"]["security"] == [{"bearer": []}, {"key": []}]
    assert "security" not in schema["paths"]["/livez"]["get"]
    assert "application/problem+json" in schema["paths"]["/jobs"]["get"]["responses"]["default"]["content"]
    rate = schema["components"]["schemas"]["JobIn"]["properties"]["learning_rate"]
    assert (rate["default"], rate["maximum"], rate["description"]) == (0.001, 10.0, "Peak rate of AdamW.")


def test_this_machines_own_names_are_answered(client: TestClient) -> None:
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "localhost."):
        assert client.get("/livez", headers={"Host": host}).status_code == 200


def test_other_names_are_not(client: TestClient) -> None:
    for host in ("evil.example", "localhost.evil.example", "10.0.0.5", "", "[", "127.0.0.1.nip.io"):
        answer = client.get("/livez", headers={"Host": host})
        assert (answer.status_code, answer.json()["code"]) == (421, "host_unknown")


def test_the_operator_allows_further_names(serve: Serve) -> None:
    client = serve(host="0.0.0.0", api_key=SecretStr(KEY), allowed_hosts=("ratchet.lan",))
    for host in ("ratchet.lan:8000", "192.168.1.5:8000", "[fe80::1]:8000", "localhost"):
        assert client.get("/livez", headers={"Host": host}).status_code == 200
    assert client.get("/livez", headers={"Host": "other.lan"}).status_code == 421


def test_another_sites_page_changes_nothing(client: TestClient) -> None:
    origins = ("http://evil.example", "null", "http://127.0.0.1:3000", "http://[bad")
    for headers in (*({"Origin": origin} for origin in origins), {"Sec-Fetch-Site": "cross-site"}):
        for method in ("POST", "DELETE", "PATCH", "PUT"):
            answer = client.request(method, "/jobs/job_x", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (403, "cross_site")
        answer = client.get("/jobs", headers=headers)
        assert answer.status_code == 200
        assert "access-control-allow-origin" not in answer.headers


def test_the_services_own_page_may(client: TestClient) -> None:
    headers = {"Origin": "http://127.0.0.1", "Sec-Fetch-Site": "same-origin"}
    assert client.post("/jobs", json=BODY, headers=headers).status_code == 201


def test_a_preflight_is_not_granted(client: TestClient) -> None:
    headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = client.options("/jobs", headers=headers)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


def test_a_body_that_is_too_large_is_refused(client: TestClient) -> None:
    large = client.post("/generate", content=b" " * (1 << 20) + b"{}", headers={"Content-Type": "application/json"})
    assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
    config = client.post("/jobs", json={**BODY, "name": "x" * 65_536})
    assert (config.status_code, config.json()["code"]) == (413, "body_too_large")
    assert client.post("/jobs/x/resume", json={"name": "x" * 65_536}).status_code == 413
    assert client.post("/jobs", content=b"{}", headers={"Content-Length": "9" * 30}).status_code == 413


@pytest.fixture
def send_raw(running: Running) -> Iterator[Callable[[bytes], bytes]]:
    """Bytes to the service, and all that comes back until it closes."""
    with socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=10) as connection:

        def send_raw(request: bytes) -> bytes:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(65_536), b""))

        yield send_raw


HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_a_body_said_to_be_too_large_is_refused_before_it_comes(send_raw: Callable[[bytes], bytes]) -> None:
    assert b" 413 " in send_raw(HEAD + b"Content-Length: 1048577\r\n\r\n").split(b"\r\n")[0]


def test_a_body_in_chunks_is_counted(send_raw: Callable[[bytes], bytes]) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    assert b" 413 " in send_raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17).split(b"\r\n")[0]


def test_a_body_that_does_not_come_is_not_waited_for(
    run_service: Callable[..., AbstractContextManager[Running]],
) -> None:
    with (
        run_service(body_seconds=0.2) as running,
        socket.create_connection(("127.0.0.1", int(running.url.rpartition(":")[2])), timeout=10) as connection,
    ):
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\n{")
        assert b" 408 " in connection.recv(65_536).split(b"\r\n")[0]


Post = Callable[..., int]


@pytest.fixture(params=["/jobs", "/generate"])
def post(client: TestClient, request: pytest.FixtureRequest) -> Post:
    """The status that a body gets."""

    def post(content: bytes, kind: str = "application/json") -> int:
        answer = client.post(request.param, content=content, headers={"Content-Type": kind})
        assert answer.json()["status"] == answer.status_code
        return answer.status_code

    return post


def test_nothing_in_a_body_is_the_services_fault(post: Post) -> None:
    for content in (
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b'{"source":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"a":\x00}',
        b'{"model":"gpt2","prompt":"\\ud800"}',
        b'{"model":"gpt2","prompt":["a","\\udfff"]}',
        b'{"model":"\\ud800","prompt":"a"}',
        b'{"model":"gpt2","prompt":"a","stop":"\\ud800"}',
        b'{"model":"gpt2","prompt":"a","stop":["\\ud800"]}',
    ):
        assert post(content) in {400, 422}
    for content in (b'{"seed":' + b"9" * 5000 + b"}", b'{"training_steps":"' + b"9" * 5000 + b'"}'):
        assert post(content) in {400, 422}
    assert post(b'{"learning_rate":NaN,"lora_alpha":Infinity}') == 422
    assert post(json.dumps(BODY).encode(), "text/plain") == 422
    for depth in (100, 500, 800, 900, 940, 960, 980, 2000, 30_000):
        assert post(b'{"metadata":' + b"[" * depth + b"]" * depth + b"}") in {400, 422}
        assert post(b'{"metadata":' + b'{"a":' * depth + b"1" + b"}" * (depth + 1)) in {400, 422, 413}


def test_an_odd_request_id_is_replaced(client: TestClient) -> None:
    assert client.get("/livez", headers={"X-Request-ID": "my-id.1"}).headers["x-request-id"] == "my-id.1"
    for said in ("", "x y", "a\x01", "x" * 129, "<script>"):
        given = client.get("/livez", headers={"X-Request-ID": said}).headers["x-request-id"]
        assert given != said
        assert given.isalnum()


def test_a_mistake_of_ours_leaves_no_trace_in_the_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    client = serve()

    def stumble(*_: object) -> None:
        raise ZeroDivisionError("the secret detail")

    monkeypatch.setattr(service_app.jobs.JobOut, "of", stumble)
    answer = client.post("/jobs", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert "the secret detail" in caplog.text
    assert answer.json()["request_id"] in caplog.text


def test_the_docs_need_nothing_from_another_machine(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    assert "POST /jobs/{ref}/resume" in page.text
    assert "learning_rate" in page.text
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "<script" not in page.text


def test_the_docs_write_whole_numbers_and_code_as_such(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "<td>integer ≥ 1 ≤ 10000000<td>" in page
    assert "integer ≥ 0 &lt; 9223372036854775808" in page
    assert "<code>from_scratch</code>" in page
    assert "`" not in page


def test_without_a_page_the_front_is_a_404(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("web")
    monkeypatch.setattr("service.routes.pages.WEB", folder)
    assert (client.get("/").status_code, client.get("/").json()["code"]) == (404, "not_found")
    (folder / "index.html").write_text("<h1>hello")
    assert client.get("/").text == "<h1>hello"
