"""The event log: one append, one read. A job's events are numbered 1, 2, 3 … in the order they were committed."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Row
from sqlmodel import Session, col, select, update

from core.events import finite
from jobs.errors import LeaseLost
from jobs.tables import HELD, Checkpoint, Event, Job, State
from jobs.transitions import held, insert_events, transition
from jobs.turns import SHELF, take_turn

MICROSECOND = 1e-6

Said = tuple[str, dict[str, Any]]
"""An event's kind and its data."""

_IMPLIED: dict[str, dict[str, str]] = {
    "step": {"step": "step", "train_loss": "loss", "tokens_per_second": "tokens_per_second"},
    "eval": {"train_loss": "train_loss", "val_loss": "val_loss"},
    "resumed": {"step": "from_step"},
    "checkpoint": {"checkpoint": "id"},
}
"""Kind of event → column of `Job` → field of the event that it shows."""


def record(session: Session, job_id: str, fence: int, events: Sequence[Said], *, now: float | None = None) -> int:
    """Append events to a job's log, and bring the job's own columns and its checkpoints up to date with them.

    Taking the numbers locks the job's row until the transaction ends, which makes them gapless and in commit order.
    `started` makes a starting job running. Objects of this job that the session loaded before are not refreshed.

    Args:
        events: In order; a checkpoint's event belongs in the same call as the steps before it.
        now: Unix seconds; the present if left out.

    Returns:
        The number of the last event.

    Raises:
        LeaseLost: the caller does not hold the job, or no longer; nothing was written.
    """
    now = time.time() if now is None else now
    kinds = {kind for kind, _ in events}
    if "started" in kinds and held(session, job_id, fence).state is State.STARTING:
        transition(session, job_id, State.RUNNING, fence=fence, now=now)
    job = _take_numbers(session, job_id, fence, events)
    insert_events(session, job_id, job.last_seq, job.attempt, events, now)
    for number, data in enumerate(data for kind, data in events if kind == "checkpoint"):
        # Two of one batch would else be equally new, and either of them the latest.
        _register(session, job_id, job, data, now + number * MICROSECOND)
    return int(job.last_seq)


def position(session: Session, job_id: str, fence: int) -> int:
    """The number of a job's last event, for its holder, who alone can add one.

    Raises:
        LeaseLost: the caller is not the holder.
    """
    return held(session, job_id, fence).last_seq


def after(session: Session, job_id: str, seq: int, limit: int = 500) -> list[Event]:
    """The events that follow number `seq`, in order; 0 stands before the first."""
    following = select(Event).where(col(Event.job_id) == job_id, col(Event.seq) > seq)
    return list(session.exec(following.order_by(col(Event.seq)).limit(limit)).all())


def tail_seqs(session: Session, job_ids: Collection[str]) -> dict[str, int]:
    """The number of the last event of each of these jobs; one that is gone is left out."""
    rows = session.exec(select(Job.id, Job.last_seq).where(col(Job.id).in_(job_ids))).all()
    return dict(rows)


def _take_numbers(session: Session, job_id: str, fence: int, events: Sequence[Said]) -> Row[Any]:
    statement = (
        update(Job)
        .where(col(Job.id) == job_id, col(Job.fence) == fence, col(Job.state).in_(HELD))
        .values(last_seq=col(Job.last_seq) + len(events), **_implied(events))
        .returning(
            col(Job.last_seq),
            col(Job.attempt),
            col(Job.owner),
            col(Job.source),
            col(Job.model_type),
            col(Job.parent_checkpoint),
        )
    )
    row = session.exec(statement, execution_options={"synchronize_session": False}).one_or_none()
    if row is None:
        raise LeaseLost(job_id, fence)
    return row


def _implied(events: Sequence[Said]) -> dict[str, Any]:
    """What the job's columns become; of several events that say the same, the last one counts."""
    columns: dict[str, Any] = {}
    for kind, data in events:
        for column, name in _IMPLIED.get(kind, {}).items():
            if name in data:
                columns[column] = finite(data[name])
        if kind == "checkpoint":
            columns["failures_in_a_row"] = 0
        if kind == "started" and "end_step" in data:
            # How many steps some epochs are is known once the source has been counted.
            columns["training_steps"] = data["end_step"] - col(Job.start_step)
    return columns


def _register(session: Session, job_id: str, job: Row[Any], data: dict[str, Any], now: float) -> None:
    told = {
        "name": data["name"],
        "path": data.get("path", data["name"]),
        "job_id": job_id,
        "run": job_id,
        "attempt": job.attempt,
        "step": data["step"],
        "owner": job.owner,
        "source": job.source,
        "model": job.model_type,
        "parent": job.parent_checkpoint,
        "train_loss": finite(data.get("train_loss")),
        "val_loss": finite(data.get("val_loss")),
        "size_bytes": data.get("size_bytes", 0),
    }
    take_turn(session, SHELF)
    # It may be there already, if someone found it on disk before its own run could say so.
    row = session.get(Checkpoint, data["id"])
    session.add(Checkpoint(id=data["id"], created_at=now, **told) if row is None else row.sqlmodel_update(told))
    session.flush()
