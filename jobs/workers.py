"""Who is at work: one row for each worker process."""

from __future__ import annotations

import time

from sqlmodel import Session, col, delete, select, update

from jobs.tables import Worker


def register_worker(session: Session, worker: Worker) -> Worker:
    """Put a worker on the list, or put it there anew under the same id."""
    row = session.merge(worker)
    session.flush()
    return row


def beat_worker(
    session: Session, worker_id: str, *, job_id: str | None, draining: bool = False, now: float | None = None
) -> bool:
    """Show that a worker is alive, and what it does; False if it is not on the list and has to register again."""
    statement = (
        update(Worker)
        .where(col(Worker.id) == worker_id)
        .values(
            heartbeat=col(Worker.heartbeat) + 1,
            seen_at=time.time() if now is None else now,
            job_id=job_id,
            draining=draining,
        )
    )
    return session.exec(statement).rowcount == 1


def forget_worker(session: Session, worker_id: str) -> None:
    """Take a worker off the list; it makes no difference if it is not there."""
    session.exec(delete(Worker).where(col(Worker.id) == worker_id))


def list_workers(session: Session) -> list[Worker]:
    """All workers on the list, the longest at work first."""
    return list(session.exec(select(Worker).order_by(col(Worker.started_at), col(Worker.id))).all())
