from __future__ import annotations

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.machine import failpoints
from core.machine.failpoints import failpoint
from tests.conftest import PROJECT


@pytest.fixture(autouse=True)
def _first_visits() -> None:
    failpoints._visits.clear()


def test_nothing_happens_unless_the_environment_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    failpoint("here")
    monkeypatch.setenv("RATCHET_FAILPOINT", "elsewhere:error=EIO")
    failpoint("here")


def test_an_error_is_raised_at_its_site_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_FAILPOINT", "there:sleep=0;here:error=ENOSPC")
    failpoint("there")
    with pytest.raises(OSError, match="No space left") as raised:
        failpoint("here")
    assert raised.value.errno == errno.ENOSPC


def test_an_action_waits_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_FAILPOINT", "here:error=EIO@2")
    failpoint("here")
    with pytest.raises(OSError, match="Input/output"):
        failpoint("here")
    failpoint("here")


def test_from_a_turn_on_an_action_comes_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_FAILPOINT", "here:error=EIO@2+")
    failpoint("here")
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output"):
            failpoint("here")


def test_sleep_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_FAILPOINT", "here:sleep=0.05")
    begun = time.monotonic()
    failpoint("here")
    assert time.monotonic() - begun >= 0.05


@pytest.mark.parametrize(("action", "status"), [("kill", -signal.SIGKILL), ("exit=3", 3)])
def test_a_process_ends_as_it_is_told_once_among_all(action: str, status: int, tmp_path: Path) -> None:
    code = "from core.machine.failpoints import failpoint; failpoint('here')"
    told = {"RATCHET_FAILPOINT": f"here:{action}", "RATCHET_FAILPOINT_ONCE": str(tmp_path)}
    first = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=told, check=False)
    second = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=told, check=False)
    assert (first.returncode, second.returncode) == (status, 0)
