from __future__ import annotations

from typing import Any

from jobs import workers
from jobs.tables import Worker


def hand(worker_id: str, started_at: float = 0.0, pid: int = 1) -> Worker:
    return Worker(id=worker_id, hostname="h", pid=pid, version="0", started_at=started_at, seen_at=started_at)


def test_workers_are_listed_the_longest_at_work_first(session: Any) -> None:
    for worker_id, started_at in [("b", 2.0), ("a", 1.0)]:
        workers.register_worker(session, hand(worker_id, started_at))
    assert [worker.id for worker in workers.list_workers(session)] == ["a", "b"]


def test_a_beat_shows_what_a_worker_does(session: Any) -> None:
    worker = workers.register_worker(session, hand("a"))
    assert workers.beat_worker(session, "a", job_id="job_x", draining=True, now=5.0)
    session.refresh(worker)
    assert (worker.heartbeat, worker.seen_at, worker.job_id, worker.draining) == (1, 5.0, "job_x", True)


def test_a_worker_that_was_forgotten_is_told_to_register_again(session: Any) -> None:
    workers.register_worker(session, hand("a"))
    workers.forget_worker(session, "a")
    workers.forget_worker(session, "a")
    assert workers.list_workers(session) == []
    assert not workers.beat_worker(session, "a", job_id=None)


def test_a_worker_that_registers_again_is_listed_once(session: Any) -> None:
    workers.register_worker(session, hand("a", pid=1))
    workers.register_worker(session, hand("a", pid=2))
    assert [worker.pid for worker in workers.list_workers(session)] == [2]


def test_a_workers_token_is_not_printed(session: Any) -> None:
    worker = hand("a")
    worker.inference_token = "secret-token"
    assert "secret-token" not in repr(worker)
