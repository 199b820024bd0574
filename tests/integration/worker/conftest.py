from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from core.config import TrainingConfig, config_to_dict, parse
from jobs import catalog, feed, queue
from jobs.database import Database
from jobs.queue import NewJob
from jobs.tables import FINAL, Event, Job, State

TEXT = "\n\n".join(f"QUESTION: What is {a} plus {b}?\nANSWER: It is {a + b}." for a in range(12) for b in range(12))

TINY = {
    "source": "sums.md",
    "test_mode": True,
    "training_steps": 40,
    "eval_interval": 20,
    "eval_iters": 1,
    "checkpoint_interval": 10,
    "block_size": 16,
    "batch_size": 2,
    "n_embd": 16,
    "max_new_tokens": 0,
    "device": "cpu",
}
LOOK_SECONDS = 0.05
"""Each look at a ledger takes a few milliseconds from the processes that it waits for."""

FOREVER = {"training_steps": 1_000_000, "eval_interval": 1_000_000, "checkpoint_interval": 1_000_000}


class Bench:
    """A ledger, a sources folder, and workers on them: real processes, real signals."""

    def __init__(self, folder: Path, database_url: str | None = None) -> None:
        self.folder = folder
        (folder / "sources").mkdir()
        (folder / "sources" / "sums.md").write_text(TEXT)
        self.db = Database(database_url or f"sqlite:///{folder / 'ratchet.db'}")
        self.db.migrate()
        self.processes: list[subprocess.Popen[str]] = []

    def worker(self, *, behind: Sequence[str] = (), log: Path | None = None, **settings: Any) -> subprocess.Popen[str]:
        """A worker with these settings; `behind` has a program that turns into it, `log` takes what it says."""
        told = {
            "DATA": self.folder,
            "DATABASE_URL": self.db.url,
            "SOURCES": self.folder / "sources",
            "INFERENCE": False,
            "LEASE_SECONDS": 1.5,
            "HEARTBEAT_SECONDS": 0.3,
            "SCAN_SECONDS": 0.2,
            "STOP_POLL_SECONDS": 0.1,
            "CLAIM_SECONDS": 0.05,
            "WARM_CHILD": False,
            **settings,
        }
        env = {**os.environ, **{f"RATCHET_{name}": str(value) for name, value in told.items()}, "OMP_NUM_THREADS": "1"}
        project = Path(__file__).resolve().parents[3]
        command = [*behind, sys.executable, "-m", "worker"]
        with log.open("a") if log else nullcontext() as stderr:
            process = subprocess.Popen(command, cwd=project, env=env, text=True, stderr=stderr)
        self.processes.append(process)
        return process

    @contextmanager
    def locked_ledger(self) -> Iterator[None]:
        """Keep every other writer from the ledger, which is a file here."""
        with self.db.write() as session:
            # A transaction begins, and takes the lock, with its first statement.
            session.execute(text("SELECT 1"))
            other = sqlite3.connect(self.folder / "ratchet.db", timeout=0, isolation_level=None)
            with closing(other), pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("BEGIN IMMEDIATE")
            yield

    def submit(self, name: str = "sums", **given: Any) -> str:
        config = parse(TrainingConfig, {**TINY, **given})
        with self.db.write() as session:
            return queue.enqueue(session, NewJob(name, config_to_dict(config), config.training_steps)).job.id

    def job(self, job_id: str) -> Job:
        with self.db.read() as session:
            return catalog.get_job(session, "local", job_id)

    def events(self, job_id: str) -> list[Event]:
        with self.db.read() as session:
            return feed.after(session, job_id, 0, limit=100_000)

    def log_of(self, job_id: str) -> list[tuple[str, dict[str, Any]]]:
        """Kind and data of each event, whose numbers have no gap and no repeat."""
        events = self.events(job_id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        return [(event.kind, json.loads(event.data)) for event in events]

    def errors_of(self, job_id: str) -> list[str]:
        """Code of each error that the job's states told, in order."""
        return [data["error"]["code"] for kind, data in self.log_of(job_id) if kind == "state" and "error" in data]

    def ask(self, verb: Callable[..., Job], job_id: str) -> Job:
        with self.db.write() as session:
            return verb(session, catalog.get_job(session, "local", job_id))

    def until(self, job_id: str, *states: State, seconds: float = 40) -> Job:
        return self.when(lambda: (job := self.job(job_id)).state in states and job, seconds)

    def until_final(self, job_id: str) -> Job:
        return self.until(job_id, *FINAL)

    def until_step(self, job_id: str, step: int) -> Job:
        return self.when(lambda: (job := self.job(job_id)).step >= step and job)

    def child_of(self, worker: subprocess.Popen[str]) -> int:
        def find() -> int | None:
            return next(iter(self.children_of(worker)), None)

        return self.when(find)

    def children_of(self, worker: subprocess.Popen[str]) -> list[int]:
        """Training processes, and the one that waits; each thread of the worker has children of its own."""

        def is_child(pid: str) -> bool:
            try:
                return "worker.child" in Path(f"/proc/{pid}/cmdline").read_text()
            except FileNotFoundError:
                return False

        lists = Path(f"/proc/{worker.pid}/task").glob("*/children")
        return [int(pid) for each in lists for pid in each.read_text().split() if is_child(pid)]

    def when(self, found: Callable[[], Any], seconds: float = 40) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := found():
                return value
            time.sleep(LOOK_SECONDS)
        pytest.fail("waited in vain")

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
        self.db.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()
