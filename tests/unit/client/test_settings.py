from __future__ import annotations

from pathlib import Path

import httpx2
import pytest

from client.api import Ratchet
from client.errors import UnusableSetting


def key_sent_by(**settings: str) -> str | None:
    """What a client shows a service of its key."""
    shown: list[bytes | None] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        raw = {name.lower(): value for name, value in request.headers.raw}
        shown.append(raw.get(b"authorization"))
        return httpx2.Response(200, json={})

    with Ratchet(transport=httpx2.MockTransport(answer), **settings) as api:
        api.health()
    return None if shown[0] is None else shown[0].decode()


def test_address_and_key_may_stand_in_a_file_of_the_folder_as_for_the_service(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("RATCHET_URL=http://there:8123/\nRATCHET_API_KEY=filed\nRATCHET_PORT=8123\n")
    with Ratchet() as api:
        assert api.url == "http://there:8123"
    assert key_sent_by() == "Bearer filed"


def test_what_is_given_outvotes_the_environment_and_that_outvotes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("RATCHET_API_KEY=filed\n")
    monkeypatch.setenv("RATCHET_API_KEY", "set")
    assert key_sent_by() == "Bearer set"
    assert key_sent_by(api_key="given") == "Bearer given"
    assert key_sent_by(api_key="") is None
    monkeypatch.setenv("RATCHET_API_KEY", "")
    assert key_sent_by() is None


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("localhost:8123", "http://localhost:8123"),
        ("10.0.0.1", "http://10.0.0.1"),
        ("https://there/", "https://there"),
        ("", "http://127.0.0.1:8000"),
    ],
)
def test_an_address_without_a_scheme_is_http(monkeypatch: pytest.MonkeyPatch, said: str, meant: str) -> None:
    monkeypatch.setenv("RATCHET_URL", said)
    with Ratchet() as api:
        assert api.url == meant


@pytest.mark.parametrize("said", ["ftp://there", "http://", "http://[::1", "://"])
def test_what_is_no_address_is_refused_in_a_sentence(said: str) -> None:
    with pytest.raises(UnusableSetting, match="RATCHET_URL: "):
        Ratchet(said)


def test_a_key_is_sent_in_utf_8() -> None:
    assert key_sent_by(api_key="é€") == "Bearer é€"


@pytest.mark.parametrize("key", ["secret\n", "sec\x00ret", "secret\udcff"])
def test_a_key_that_cannot_be_sent_is_refused_without_being_quoted(key: str) -> None:
    with pytest.raises(UnusableSetting, match="RATCHET_API_KEY: ") as refused:
        Ratchet(api_key=key)
    assert "sec" not in str(refused.value)
