"""Lists as tables. Everything a service says is shown as plain text, never as markup."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from client import wording
from client.events import Event
from core.events import printable

Row = Mapping[str, Any]

WHOLE_TABLE_WIDTH = 120
"""Columns of a terminal in which a table needs to leave nothing out."""

STATE_STYLES = {"running": "cyan", "succeeded": "green", "failed": "red", "cancelled": "dim", "paused": "yellow"}


class Column(NamedTuple):
    """`is_extra` is left out where there is no room for it: an id cut short is worse than a number that is missing."""

    heading: str
    show: Callable[[Row], str]
    is_extra: bool = False


def jobs(items: Sequence[Row], width: int) -> Table:
    """Jobs with their progress."""
    return _table(
        items,
        width,
        Column("job", lambda job: job["id"]),
        Column("name", lambda job: job["name"]),
        Column("state", lambda job: job["state"]),
        Column("step", wording.steps),
        Column("done", lambda job: f"{100 * (job['progress'] or 0):.0f}%"),
        Column("train loss", lambda job: wording.loss(job["train_loss"]), is_extra=True),
        Column("val loss", lambda job: wording.loss(job["val_loss"]), is_extra=True),
        Column("tok/s", lambda job: wording.rate(job["tokens_per_second"]), is_extra=True),
        Column("left", lambda job: wording.duration(job["eta_seconds"]), is_extra=True),
        Column("asked", lambda job: wording.age(job["created_at"])),
    )


def checkpoints(items: Sequence[Row], width: int) -> Table:
    """Checkpoints with their losses."""
    return _table(
        items,
        width,
        Column("checkpoint", lambda item: item["id"]),
        Column("name", lambda item: item["name"], is_extra=True),
        Column("step", lambda item: str(item["step"])),
        Column("train loss", lambda item: wording.loss(item["train_loss"]), is_extra=True),
        Column("val loss", lambda item: wording.loss(item["val_loss"])),
        Column("size", lambda item: wording.size(item["size_bytes"])),
        Column("pinned", lambda item: "yes" if item["pinned"] else "", is_extra=True),
        Column("saved", lambda item: wording.age(item["created_at"])),
    )


def steps(items: Sequence[Row], width: int) -> Table:
    """Points of a loss curve."""
    return _table(
        items,
        width,
        Column("step", lambda item: str(item["step"])),
        Column("loss", lambda item: wording.loss(item["loss"])),
        Column("learning rate", lambda item: wording.small(item["lr"])),
        Column("gradient norm", lambda item: wording.small(item["grad_norm"])),
        Column("tok/s", lambda item: wording.rate(item["tokens_per_second"]), is_extra=True),
        Column("MFU", lambda item: wording.percent(item.get("mfu")), is_extra=True),
    )


def sources(items: Sequence[Row], width: int) -> Table:
    """Training data with what is in it, or why it cannot be used."""
    return _table(
        items,
        width,
        Column("source", lambda item: item["name"]),
        Column("rows", wording.rows),
        Column("bad rows", lambda item: wording.rate(item.get("num_bad_rows")), is_extra=True),
        Column("size", lambda item: wording.size(item["size_bytes"])),
        Column("characters", lambda item: wording.rate(item["num_characters"]), is_extra=True),
        Column("problem", lambda item: item["error"] or ""),
    )


def models(items: Sequence[Row], width: int) -> Table:
    """Base models with what is known of them, or why they cannot be used."""
    return _table(
        items,
        width,
        Column("model", lambda item: item["name"]),
        Column("family", lambda item: item["family"] or wording.MISSING),
        Column("weights", lambda item: wording.rate(item["num_parameters"])),
        Column("size", lambda item: wording.size(item["size_bytes"])),
        Column("context", lambda item: wording.rate(item["max_context"]), is_extra=True),
        Column("chat", lambda item: "yes" if item["has_chat_template"] else "", is_extra=True),
        Column("from", lambda item: item["source"], is_extra=True),
        Column("problem", lambda item: item["error"] or ""),
    )


def workers(items: Sequence[Row], width: int) -> Table:
    """Workers with what they do."""
    return _table(
        items,
        width,
        Column("worker", lambda item: item["id"]),
        Column("state", _worker_state),
        Column("job", lambda item: item["job_id"] or wording.MISSING),
        Column("devices", lambda item: ", ".join(map(_device, item["devices"])) or wording.MISSING),
        Column("memory", lambda item: wording.size(item["memory_bytes"]), is_extra=True),
        Column("seen", lambda item: wording.age(item["seen_at"]), is_extra=True),
    )


def _worker_state(worker: Row) -> str:
    if not worker["alive"]:
        return "gone"
    if worker["draining"]:
        return "stopping"
    return "busy" if worker["job_id"] else "idle"


def _device(device: Any) -> str:
    return str(device.get("name") or device.get("type") or device) if isinstance(device, Mapping) else str(device)


def event_line(event: Event) -> str:
    """One event as one line of JSON."""
    return json.dumps(event._asdict(), separators=(",", ":"))


def _table(items: Iterable[Row], width: int, *columns: Column) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    shown = [column for column in columns if width >= WHOLE_TABLE_WIDTH or not column.is_extra]
    for column in shown:
        # Of all texts a name alone may be folded: the others are copied, or are numbers.
        table.add_column(column.heading, no_wrap=column.heading != "name")
    for item in items:
        table.add_row(*(_cell(column.heading, column.show(item)) for column in shown))
    return table


def _cell(heading: str, text: str) -> Text:
    return Text(printable(text), style=STATE_STYLES.get(text, "") if heading == "state" else "")
