"""Taking turns: for verbs that look first and then add what is not there yet."""

from __future__ import annotations

from sqlalchemy import func
from sqlmodel import Session, select

LINE = 1
"""Putting a job at the end of the line, where it needs the next place."""

SHELF = 2
"""Entering a checkpoint, which its run and whoever finds it on disk may do at the same time; starting a job from one,
and removing it."""

_OURS = 7_242_539


def take_turn(session: Session, turn: int) -> None:
    """Let nobody else do the same until this transaction ends; may be said again within it.

    On SQLite there is nothing to do: a transaction that may write is alone from its start.
    """
    if session.get_bind().dialect.name == "postgresql":
        session.exec(select(func.pg_advisory_xact_lock(_OURS, turn)))
