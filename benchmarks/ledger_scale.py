"""A ledger with a long past: claim, list and read events among a million jobs and ten million events in SQLite, and how
many `POST /jobs` a second are answered, each one durable.

    python benchmarks/ledger_scale.py [--jobs 1000000] [--events 10000000] [--posts 3000]

By default a tenth of each, so that all benchmarks together stay short. Most of the jobs have ended; a hundred wait.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from _row import print_row, started
from sqlalchemy import text

from core.config import TrainingConfig, config_to_dict
from jobs import catalog, feed, queue
from jobs.database import Database
from jobs.tables import State

ROUNDS = 300
CONNECTIONS = 32
NUM_QUEUED = 100
SOURCE = "A line of text to learn from. " * 200

_JOBS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :jobs)
INSERT INTO job (id, seq, place, name, owner, state, priority, config, metadata, source, model_type, start_step,
    training_steps, step, attempt, failures_in_a_row, fence, heartbeat, last_seq, created_at, started_at, finished_at)
SELECT printf('job_%020d', i), i, i << 20, 'run ' || i, 'local', CASE WHEN i > :jobs - :queued THEN 'queued'
    WHEN i % 10 = 0 THEN 'failed' WHEN i % 13 = 0 THEN 'cancelled' ELSE 'succeeded' END, i % 3, :config,
    '{"team": "red"}', 'tale_' || (i % 7) || '.md', 'from_scratch', 0, 100, 100, 1, 0, 1, 20, :each, 1.7e9 + i,
    1.7e9 + i, 1.7e9 + i + 60
FROM n
"""

_EVENTS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :each)
INSERT INTO event (job_id, seq, kind, attempt, created_at, data)
SELECT job.id, n.i, 'step', 1, job.created_at + n.i, '{"step":' || n.i || ',"loss":1.2345678,"lr":0.001,'
    || '"grad_norm":0.98765,"tokens_per_second":35172.1,"memory_bytes":812345678}'
FROM job CROSS JOIN n ORDER BY job.id, n.i
"""

_LONG_RUN = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :long)
INSERT INTO event (job_id, seq, kind, attempt, created_at, data)
SELECT :id, :each + n.i, 'step', 1, 1.7e9 + n.i, '{"step":' || n.i || ',"loss":1.2345678}' FROM n
"""


def fill(ledger: Database, num_jobs: int, num_events: int) -> str:
    """Write the past, a tenth of it into one run; the id of that run."""
    long = num_events // 10
    each = (num_events - long) // num_jobs
    config = config_to_dict(TrainingConfig(source="tale.md"))
    job_id = f"job_{num_jobs // 2:020d}"
    told = {
        "jobs": num_jobs,
        "queued": NUM_QUEUED,
        "each": each,
        "long": long,
        "id": job_id,
        "config": json.dumps(config),
    }
    with ledger.writer.begin() as connection:
        for statement in (_JOBS, _EVENTS, _LONG_RUN):
            # Straight to the driver: to anyone else, a colon in the JSON would begin a parameter.
            connection.exec_driver_sql(statement, told)
        connection.exec_driver_sql("UPDATE job SET last_seq = last_seq + :long WHERE id = :id", told)
    return job_id


def milliseconds(act: Callable[[int], Any], rounds: int = ROUNDS) -> dict[str, float]:
    """Median, 95th percentile and worst of so many rounds."""
    took = []
    for number in range(rounds):
        began = time.perf_counter()
        act(number)
        took.append((time.perf_counter() - began) * 1000)
    ordered = sorted(took)
    found = {"p50": statistics.median(ordered), "p95": ordered[int(0.95 * rounds)], "max": ordered[-1]}
    return {name: round(value, 2) for name, value in found.items()}


def look(ledger: Database, num_jobs: int, long_run: str) -> dict[str, dict[str, float]]:
    """Each question as a service or a worker asks it, in a transaction of its own."""

    def claim(_number: int) -> None:
        with ledger.write() as session:
            assert queue.claim(session, "w1", time.time())

    def list_newest(number: int) -> None:
        after = f"job_{(number + 1) * (num_jobs // (ROUNDS + 1)):020d}"
        with ledger.read() as session:
            assert len(catalog.list_jobs(session, "local", 50, after)[0]) == 50

    def list_some(number: int) -> None:
        with ledger.read() as session:
            states = [State.FAILED] if number % 2 else [State.FAILED, State.CANCELLED]
            assert len(catalog.list_jobs(session, "local", 50, states=states)[0]) == 50

    def page(number: int) -> None:
        with ledger.read() as session:
            assert len(feed.after(session, long_run, number * 100)) == 500

    def record(number: int) -> None:
        with ledger.write() as session:
            feed.record(session, running.id, running.fence, [("step", {"step": number, "loss": 1.0})])

    with ledger.write() as session:
        running = queue.claim(session, "w1", time.time())
        assert running
    return {
        "claim_ms": milliseconds(claim, NUM_QUEUED // 2),
        "list_50_ms": milliseconds(list_newest),
        "list_50_by_state_ms": milliseconds(list_some),
        "page_of_500_events_ms": milliseconds(page),
        "record_ms": milliseconds(record),
    }


async def post(url: str, num_posts: int) -> tuple[float, list[float]]:
    """Seconds for so many jobs over a few connections, and of each request."""
    address = urlsplit(url)
    body = json.dumps({"source": "tale.md", "training_steps": 10}).encode()
    head = f"POST /jobs HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    took: list[float] = []
    left = iter(range(num_posts))

    async def client() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        for number in left:
            began = time.perf_counter()
            key = f"Idempotency-Key: {number}\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode() + key.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 201"), answer
            length = int(answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CONNECTIONS)))
    return time.perf_counter() - began, sorted(took)


def submit(folder: Path, ledger: Database, num_posts: int) -> dict[str, Any]:
    """Jobs a second, with this ledger behind the service."""
    (folder / "sources").mkdir()
    (folder / "sources" / "tale.md").write_text(SOURCE)
    told = {
        "RATCHET_DATABASE_URL": ledger.url,
        "RATCHET_DATA": str(folder),
        "RATCHET_SOURCES": str(folder / "sources"),
        "RATCHET_PORT": "0",
        "RATCHET_MAX_QUEUED_JOBS": "1000000",
    }
    with started("service", **told) as (_, url):
        asyncio.run(post(url, 0))
        seconds, took = asyncio.run(post(url, num_posts))
    with ledger.read() as session:
        stored = session.execute(text("SELECT count(*) FROM job WHERE idempotency_key IS NOT NULL")).scalar()
    assert stored == num_posts
    return {
        "posts_per_second": round(num_posts / seconds, 1),
        "post_p50_ms": round(1000 * took[len(took) // 2], 1),
        "post_p95_ms": round(1000 * took[int(0.95 * len(took))], 1),
        "connections": CONNECTIONS,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--posts", type=int, default=3_000)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ratchet-ledger-"))
    ledger = Database(f"sqlite:///{folder / 'ratchet.db'}")
    try:
        ledger.migrate()
        began = time.perf_counter()
        long_run = fill(ledger, given.jobs, given.events)
        filled = time.perf_counter() - began
        figures = look(ledger, given.jobs, long_run)
        answers = submit(folder, ledger, given.posts)
        size = sum(path.stat().st_size for path in folder.glob("ratchet.db*"))
    finally:
        ledger.close()
        shutil.rmtree(folder)
    sizes = {"jobs": given.jobs, "events": given.events, "size_gib": round(size / 2**30, 2)}
    print_row("ledger_scale", **sizes, fill_seconds=round(filled, 1), **figures, **answers)


if __name__ == "__main__":
    main()
