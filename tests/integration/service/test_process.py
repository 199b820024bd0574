from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from service.__main__ import main as service_main
from tests.integration.service.conftest import Start

Refusal = Callable[..., str]


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What the command says before it gives up."""

    def refusal(**variables: str) -> str:
        for name, value in {"RATCHET_DATA": str(tmp_path), **variables}.items():
            monkeypatch.setenv(name, value)
        assert service_main() == 2
        said, complaint = capsys.readouterr()
        assert (said, complaint.count("\n")) == ("", 1)
        return complaint

    return refusal


def test_it_says_when_it_is_ready_and_ends_when_asked(start: Start) -> None:
    process = start()
    assert process.stdout is not None
    ready = process.stdout.readline()
    assert ready.startswith("Ratchet is ready at http://127.0.0.1:")
    url = ready.split()[-1]
    assert "server" not in httpx2.get(f"{url}/readyz").headers
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    rest, complaints = process.communicate(timeout=15)
    assert time.monotonic() - begun < 4
    assert (process.returncode, rest, complaints) == (0, "", "")


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"RATCHET_HOST": "0.0.0.0"}, "set RATCHET_API_KEY as well"),
        ({"RATCHET_PORT": "many"}, "RATCHET_PORT: "),
        ({"RATCHET_DATABASE_URL": "mysql://x"}, "is for mysql"),
        ({"RATCHET_HOST": "no.such.host.invalid", "RATCHET_API_KEY": "k"}, "Cannot listen on no.such.host.invalid"),
    ],
)
def test_settings_it_cannot_use_are_one_sentence(refusal: Refusal, variables: dict[str, str], sentence: str) -> None:
    assert sentence in refusal(**variables)


def test_a_port_in_use_is_one_sentence(refusal: Refusal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Address already in use" in refusal(RATCHET_PORT=str(taken.getsockname()[1]))
