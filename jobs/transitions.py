"""The one way from state to state, and the events that say so."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import func, insert
from sqlalchemy.sql.dml import ReturningInsert
from sqlmodel import Session, SQLModel, col, update

from core.errors import RatchetError
from core.events import to_json
from jobs.errors import IllegalTransition, JobNotFound, LeaseLost
from jobs.tables import FINAL, HELD, TRANSITIONS, Job, State

RETURN_FRESH = {"synchronize_session": False, "populate_existing": True}
"""For an UPDATE … RETURNING of rows that the session may have loaded before."""

_TOLD = ("error", "diff")
"""Columns that a `state` event has, too, if the transition sets them."""


def transition(
    session: Session, job_id: str, to: State, *, fence: int | None, now: float | None = None, **columns: Any
) -> Job:
    """Move a job along one arrow of the state machine, and say so in its log, in one statement each.

    Args:
        fence: The holder's; None for what needs no holder, like cancelling a queued job.
        now: Unix seconds; the present if left out.
        columns: Further columns of `Job` to set in the same statement.

    Raises:
        LeaseLost: the caller does not hold the job, or no longer.
        IllegalTransition: no such arrow.
        JobNotFound: no such job.
    """
    now = time.time() if now is None else now
    origins = [state for state, targets in TRANSITIONS.items() if to in targets and (fence is None or state in HELD)]
    statement = update(Job).where(col(Job.id) == job_id, col(Job.state).in_(origins))
    if fence is not None:
        statement = statement.where(col(Job.fence) == fence)
    values = {"state": to, "last_seq": col(Job.last_seq) + (2 if to in FINAL else 1), **_implied(to, now), **columns}
    statement = statement.values(values).returning(Job)
    job: Job | None = session.exec(statement, execution_options=RETURN_FRESH).scalar_one_or_none()
    if job is None:
        raise _refusal(session, job_id, to, fence)
    announce(session, job, now, {name: columns[name] for name in _TOLD if columns.get(name) is not None})
    return job


def announce(session: Session, job: Job, now: float, told: Mapping[str, Any] | None = None) -> None:
    """Write the `state` event, and `done` after the last one; `job.last_seq` counts them already.

    Args:
        told: What else the event says: how a run goes on, why it failed.
    """
    data: dict[str, Any] = {"state": job.state, "attempt": job.attempt}
    events = [("state", {**data, **(told or {})})]
    if job.state in FINAL:
        events.append(("done", {"state": job.state}))
    insert_events(session, job.id, job.last_seq, job.attempt, events, now)


def insert_events(
    session: Session,
    job_id: str,
    last_seq: int,
    attempt: int,
    events: Iterable[tuple[str, dict[str, Any]]],
    now: float,
) -> None:
    """Write events under numbers that the same transaction has taken; the last of them gets `last_seq`."""
    rows = [
        {"job_id": job_id, "kind": kind, "attempt": attempt, "created_at": now, "data": to_json(data)}
        for kind, data in events
    ]
    for seq, row in enumerate(rows, start=last_seq - len(rows) + 1):
        row["seq"] = seq
    if rows:
        # Straight to the table: an object per event would cost more than the event. Asking for something back makes all
        # rows one statement; several in a pipeline could be left half said, and the job locked, by a client that is cut
        # off.
        session.connection().execute(_insert_events(), rows)


@cache
def _insert_events() -> ReturningInsert[Any]:
    table = SQLModel.metadata.tables["event"]
    return insert(table).returning(table.c.seq)


def held(session: Session, job_id: str, fence: int) -> Job:
    """The job, locked and fresh, for the worker that holds it.

    Raises:
        LeaseLost: the caller does not hold it.
    """
    job = session.get(Job, job_id, populate_existing=True, with_for_update=True)
    if job is None or job.fence != fence or job.state not in HELD:
        raise LeaseLost(job_id, fence)
    return job


def _implied(to: State, now: float) -> dict[str, Any]:
    """What else is true of a job in this state."""
    if to is State.RUNNING:
        return {"started_at": func.coalesce(col(Job.started_at), now)}
    if to in HELD:
        return {}
    return {"device": None, "finished_at": now} if to in FINAL else {"device": None}


def _refusal(session: Session, job_id: str, to: State, fence: int | None) -> RatchetError:
    if fence is not None:
        job = held(session, job_id, fence)
        return IllegalTransition(job_id, job.state, to)
    found = session.get(Job, job_id, populate_existing=True)
    return JobNotFound(job_id) if found is None else IllegalTransition(job_id, found.state, to)
