from __future__ import annotations

from typing import Any

import pytest

from worker import spare
from worker.spare import Spare


class Waiting:
    """A process that waits until the test ends it."""

    pid = 7

    def __init__(self) -> None:
        self.exit_code: int | None = None

    def kill(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(spare.time, "monotonic", lambda: now[0])
    return now


def test_a_machine_that_starts_no_process_now_is_asked_again_after_a_while(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[float] = []

    def refuse() -> Any:
        asked.append(clock[0])
        raise BlockingIOError(11, "Resource temporarily unavailable")

    waiting = Spare(True, refuse)
    for _ in range(5):
        waiting.prepare()
        clock[0] += 0.5
    assert asked == [1000.0, 1002.0]
    assert "no process to wait for a job can be started now" in caplog.text


def test_one_that_dies_at_once_is_not_started_anew_at_every_look(clock: list[float]) -> None:
    started: list[Waiting] = []

    def start() -> Any:
        started.append(Waiting())
        return started[-1]

    waiting = Spare(True, start)
    for _ in range(9):
        waiting.prepare()
        started[-1].exit_code = 1
        clock[0] += 0.5
    assert len(started) == 2
    taken = waiting.take()
    assert taken is started[2], "a job does not wait for that"
    clock[0] += spare.AGAIN_SECONDS
    waiting.prepare()
    assert waiting.take() is started[3]
    waiting.prepare()
    assert len(started) == 5, "one that was taken is replaced at once"
