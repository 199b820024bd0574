"""Numbers and times as a person reads them in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

MISSING = "–"


def loss(value: float | None) -> str:
    """A loss in nats per token."""
    return MISSING if value is None else f"{value:.4f}"


def small(value: float | None) -> str:
    """A number of any size, in three digits."""
    return MISSING if value is None else f"{value:.3g}"


def rate(value: float | None) -> str:
    """Tokens per second."""
    return MISSING if value is None else f"{value:,.0f}"


def percent(part: float | None) -> str:
    """A part of a whole."""
    return MISSING if part is None else f"{part:.0%}"


def duration(seconds: float | None) -> str:
    """Two units at most."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return (
        f"{whole // 3600}h {whole % 3600 // 60:02d}m"
        if whole < 86400
        else f"{whole // 86400}d {whole % 86400 // 3600}h"
    )


def size(num_bytes: float | None) -> str:
    """Powers of 1024, as file managers show them."""
    if num_bytes is None:
        return MISSING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} TiB"


def rows(source: Mapping[str, Any]) -> str:
    """How many rows of which kind a source has; a text is one piece for people."""
    kind, num_rows = source.get("kind"), source.get("num_rows")
    if source.get("format") == "text" and kind is not None:
        return "text"
    return MISSING if kind is None or num_rows is None else f"{num_rows:,} {kind}"


def age(moment: str | None, now: datetime | None = None) -> str:
    """How long ago an ISO time was."""
    if moment is None:
        return MISSING
    return f"{duration(((now or datetime.now(UTC)) - datetime.fromisoformat(moment)).total_seconds())} ago"


def steps(job: Mapping[str, Any]) -> str:
    """How far a job is and where it ends; both count the runs before it."""
    return f"{job['step']}/{job.get('start_step', 0) + job['training_steps']}"


def sentence(error: Any) -> str:
    """What a job says it failed of."""
    if isinstance(error, dict):
        return str(error.get("message") or error.get("code") or "")
    return str(error or "")
