from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
from pydantic import ValidationError

from service.server import address_of, listen
from tests.unit.service.conftest import Settled


def test_by_default_only_this_machine_is_answered(settled: Settled) -> None:
    settings = settled()
    assert (settings.host, settings.port, settings.api_key) == ("127.0.0.1", 8000, None)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "ratchet.example"])
def test_an_address_that_others_reach_needs_a_key(settled: Settled, host: str) -> None:
    with pytest.raises(ValidationError, match="set RATCHET_API_KEY as well"):
        settled(host=host)
    assert settled(host=host, api_key="s3cret").host == host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.9", "::1"])
def test_loopback_needs_none(settled: Settled, host: str) -> None:
    assert settled(host=host).api_key is None


def test_an_empty_key_is_no_key(settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_API_KEY", "")
    monkeypatch.setenv("RATCHET_HOST", "0.0.0.0")
    with pytest.raises(ValidationError, match="RATCHET_API_KEY"):
        settled()


def test_allowed_hosts_are_separated_by_commas(settled: Settled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_ALLOWED_HOSTS", "ratchet.lan, other.lan,")
    assert settled().allowed_hosts == ("ratchet.lan", "other.lan")


@pytest.mark.parametrize("variable", ["RATCHET_BASE_MODEL", "BASE_MODEL"])
def test_the_base_model_has_the_seeds_name_too(
    settled: Settled, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "distilgpt2")
    assert settled().base_model == "distilgpt2"


def test_the_key_does_not_show_in_a_log(settled: Settled) -> None:
    assert "s3cret" not in repr(settled(api_key="s3cret"))


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"), ("127.0.0.9", "127.0.0.9")]
)
def test_the_address_that_is_shown_answers(settled: Settled, host: str, shown: str) -> None:
    settings = settled(host=host, port=0, api_key="s3cret")
    try:
        listening = listen(settings)
    except OSError:
        pytest.skip(f"this machine has no {host}")
    with listening:
        url = urlsplit(address_of(settings, listening))
        assert url.netloc.startswith(f"{shown}:")
        socket.create_connection((str(url.hostname), int(url.port or 0)), timeout=5).close()
        if host == "::" and socket.has_dualstack_ipv6():
            socket.create_connection(("127.0.0.1", int(url.port or 0)), timeout=5).close()
