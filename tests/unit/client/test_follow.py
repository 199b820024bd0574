from __future__ import annotations

import io

from rich.console import Console

from client.events import Event
from client.follow import LiveView, PlainView, announce_rest, view_for
from tests.unit.client.conftest import JOB


def terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=120, color_system=None), screen


def step(number: int, loss: float) -> Event:
    return Event(number, "step", {"step": number, "loss": loss, "tokens_per_second": 128.0})


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    assert isinstance(view_for(terminal()[0], JOB), LiveView)
    assert isinstance(view_for(Console(file=io.StringIO()), JOB), PlainView)


def test_the_bar_shows_step_loss_validation_pace_and_what_is_left() -> None:
    console, screen = terminal()
    view = LiveView(console, JOB)
    with view.open():
        view.show(Event(1, "started", {"start_step": 100, "end_step": 112}))
        view.show(Event(2, "eval", {"step": 100, "train_loss": 2.0, "val_loss": 2.25}))
        view.show(step(102, 1.5))
    # 10 steps of 4 by 32 tokens are left, at one step a second.
    assert "102/112  loss 1.5000  val 2.2500  128 tok/s  10s left" in screen.getvalue()


def test_what_should_stay_readable_is_printed_above_the_bar() -> None:
    console, screen = terminal()
    view = LiveView(console, JOB)
    with view.open():
        view.show(Event(1, "state", {"state": "running", "attempt": 1}))
        view.show(Event(2, "log", {"line": "said by the bar already"}))
        view.show(Event(3, "checkpoint", {"step": 2, "id": "c", "name": "checkpoint_c"}))
        view.show(Event(4, "resumed", {"attempt": 2, "from_step": 2, "checkpoint": "c"}))
        view.show(Event(5, "warning", {"message": "Not exact."}))
        view.show(Event(6, "sample", {"step": 2, "prompt": "", "text": "Once\x1b[2J upon"}))
    shown = screen.getvalue()
    for line in ("checkpoint_c", "from step 2 (attempt 2)", "Not exact.", "Once\N{REPLACEMENT CHARACTER}[2J upon"):
        assert line in shown
    assert "said by the bar already" not in shown


def test_a_loss_that_is_no_number_and_an_unknown_pace_do_not_stop_the_bar() -> None:
    console, screen = terminal()
    view = LiveView(console, JOB)
    with view.open():
        view.show(Event(1, "started", {"start_step": 0, "end_step": 2}))
        view.show(Event(2, "step", {"step": 1, "loss": None, "tokens_per_second": None}))
    assert "1/2  loss –  val –  – tok/s  – left" in screen.getvalue()


FULL = {"code": "disk_full", "message": "Nothing is left on the disk."}


def test_the_bar_says_why_a_job_stops_by_itself() -> None:
    console, screen = terminal()
    view = LiveView(console, JOB)
    with view.open():
        view.show(Event(1, "state", {"state": "paused", "attempt": 1, "error": FULL}))
    assert "Nothing is left on the disk." in screen.getvalue()
    assert "paused" in screen.getvalue()


def test_the_last_line_of_a_paused_job_says_why_and_how_it_goes_on() -> None:
    for error, reason in ((FULL, " (Nothing is left on the disk.)"), (None, "")):
        console, screen = terminal()
        announce_rest(console, {**JOB, "state": "paused", "step": 7, "error": error})
        assert f"is paused at step 7{reason}; go on with: " in screen.getvalue()
