"""Watching a job: a progress bar on a terminal, the run's own log lines anywhere else."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from client import wording
from client.api import Ratchet
from client.command_name import command_name
from client.errors import JobFailed
from client.events import Event
from core.config import tokens_per_step
from core.events import line_of, printable

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})


class View(Protocol):
    """Shows a job's events as they come, between `__enter__` and `__exit__` of `open`."""

    def open(self) -> AbstractContextManager[Any]:
        """The time in which events are shown."""

    def show(self, event: Event) -> None:
        """One event, in order."""


class PlainView:
    """The run's own lines, for pipes, files and continuous integration."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def open(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def show(self, event: Event) -> None:
        line = line_of(event.kind, event.data)
        if line is not None:
            self._console.print(Text(printable(line)), soft_wrap=True)


class LiveView:
    """One bar with the latest numbers; what should stay readable is printed above it.

    Args:
        job: As the service described it when it was started.
    """

    def __init__(self, console: Console, job: dict[str, Any]) -> None:
        config = job["config"]
        self._tokens_per_step = tokens_per_step(config)
        self._name = job["name"]
        self._start = self._end = 0
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=console,
            expand=True,
        )
        self._task: TaskID = self._progress.add_task(self._name, total=None, numbers=job["state"])
        self._loss: float | None = None
        self._val_loss: float | None = None

    def open(self) -> AbstractContextManager[Any]:
        return self._progress

    def show(self, event: Event) -> None:
        if event.kind == "started":
            self._start, self._end = event.data["start_step"], event.data["end_step"]
            self._progress.update(self._task, total=self._end - self._start, numbers="started")
        elif event.kind == "step":
            self._advance(event.data)
        elif event.kind == "eval":
            self._val_loss = event.data["val_loss"]
        elif event.kind == "state" and event.data["state"] not in {"running", *FINAL_STATES}:
            self._progress.update(self._task, numbers=event.data["state"])
            self._remark(event)
        else:
            self._remark(event)

    def _advance(self, step: dict[str, Any]) -> None:
        self._loss = step["loss"]
        rate = step["tokens_per_second"]
        left = (self._end - step["step"]) * self._tokens_per_step / rate if rate else None
        numbers = (
            f"{step['step']}/{self._end}  loss {wording.loss(self._loss)}  val {wording.loss(self._val_loss)}  "
            f"{wording.rate(rate)} tok/s  {wording.duration(left)} left"
        )
        self._progress.update(self._task, completed=step["step"] - self._start, numbers=numbers)

    def _remark(self, event: Event) -> None:
        remark = remark_on(event)
        if remark is not None:
            self._progress.console.print(Text(printable(remark)))


def remark_on(event: Event) -> str | None:
    """What is worth a line above the bar."""
    data = event.data
    if event.kind == "checkpoint":
        return f"💾 Checkpoint at step {data['step']}: {data['name']}"
    if event.kind == "resumed":
        return f"🔄 Goes on from step {data['from_step']} (attempt {data['attempt']})"
    if event.kind in {"warning", "state"}:
        return line_of(event.kind, data)
    if event.kind == "sample":
        return f"✨ The model writes: {data['text']}"
    return None


def view_for(console: Console, job: dict[str, Any]) -> View:
    """The bar where it can be drawn, lines elsewhere."""
    return LiveView(console, job) if console.is_terminal else PlainView(console)


def follow(api: Ratchet, job: dict[str, Any], view: View, after: int = 0) -> dict[str, Any]:
    """Show a job's events until it rests; the job as it is then.

    Raises:
        JobFailed: it ended without success.
    """
    with view.open():
        _show_until_rest(api, job["id"], api.events(job["id"], after), view)
    job = api.job(job["id"])
    if job["state"] == "failed":
        raise JobFailed(f"Job {job['id']} failed: {wording.sentence(job['error']) or 'its log says why.'}")
    if job["state"] == "cancelled":
        raise JobFailed(f"Job {job['id']} was cancelled at step {job['step']}.")
    return job


def _show_until_rest(api: Ratchet, job_id: str, events: Iterable[Event], view: View) -> None:
    for event in events:
        view.show(event)
        # A paused job's stream stays open. The event may be an old one, so the job itself is asked.
        if event.kind == "state" and event.data["state"] == "paused" and api.job(job_id)["state"] == "paused":
            return


def announce_rest(console: Console, job: dict[str, Any]) -> None:
    """The last line of a followed job."""
    if job["state"] == "paused":
        again = f"{command_name()} resume {job['id']} -f"
        reason = f" ({wording.sentence(job['error'])})" if job["error"] else ""
        line = f"⏸️  Job {job['id']} is paused at step {job['step']}{reason}; go on with: {again}"
    else:
        losses = f"train loss {wording.loss(job['train_loss'])}, val loss {wording.loss(job['val_loss'])}"
        line = f"✅ Job {job['id']} {job['state']} at step {job['step']}: {losses}, checkpoint {job['checkpoint']}"
    console.print(Text(printable(line)), soft_wrap=True)
