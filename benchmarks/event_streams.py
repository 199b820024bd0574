"""Many readers of one run: how late a step reaches them, and whether random disconnects lose or repeat an event."""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from _readers import Crowd, follow
from _row import print_row, started

from core.config import TrainingConfig, config_to_dict
from jobs import feed, lease, queue
from jobs.database import Database
from jobs.lease import Succeeded
from jobs.queue import NewJob

NUM_STEPS = 1_000_000
"""More than there will be."""

GATHERING_SECONDS = 30.0
DISCONNECTING_SECONDS = 60.0
DRAINING_SECONDS = 20.0


class Run:
    """A job, and what its worker would do: say a step now and then, until it is finished."""

    def __init__(self, ledger: Database, steps_per_second: float) -> None:
        self._ledger = ledger
        self._interval_seconds = 1 / steps_per_second
        self._next = time.monotonic()
        self.num_steps = 0
        config = config_to_dict(TrainingConfig(training_steps=NUM_STEPS))
        with ledger.write() as session:
            queue.enqueue(session, NewJob("streams", config, NUM_STEPS))
            job = queue.claim(session, "benchmark", time.time())
            assert job is not None
            feed.record(session, job.id, job.fence, [("started", {"start_step": 0, "end_step": NUM_STEPS})])
        self.job = job

    def step(self) -> None:
        """Say the next step when it is time."""
        time.sleep(max(0.0, self._next - time.monotonic()))
        self._next = max(self._next + self._interval_seconds, time.monotonic())
        self.num_steps += 1
        said = {"step": self.num_steps, "loss": 2.0, "lr": 0.001, "grad_norm": 1.0, "tokens_per_second": 40_000.0}
        emitted_at = time.time()
        with self._ledger.write() as session:
            feed.record(session, self.job.id, self.job.fence, [("step", {**said, "emitted_at": emitted_at})])

    def finish(self) -> int:
        """Say the last events; how many there are in all."""
        with self._ledger.write() as session:
            lease.finish(session, self.job.id, self.job.fence, Succeeded())
        with self._ledger.read() as session:
            return feed.tail_seqs(session, [self.job.id])[self.job.id]


@contextmanager
def sent(crowd: Crowd) -> Iterator[Connection]:
    """The readers' process, and the pipe on which it tells."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=follow, args=(crowd, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
        process.join(10)
    finally:
        process.kill()
        process.join()


def told(pipe: Connection, num_events: int) -> dict[str, Any]:
    """What the readers saw of so many events."""
    if not pipe.poll(DRAINING_SECONDS):
        raise SystemExit("The readers did not come to an end.")
    seen: dict[str, Any] = pipe.recv()
    seen["lost"] += sum(num_events - last for last in seen.pop("last_seqs"))
    return seen


def at_the_live_edge(service: psutil.Process, ledger: Database, asked: argparse.Namespace, url: str) -> dict[str, Any]:
    """All readers wait for each step."""
    run = Run(ledger, asked.rate)
    max_seconds = GATHERING_SECONDS + asked.seconds + DRAINING_SECONDS
    with sent(Crowd(url, run.job.id, asked.clients, asked.seed, max_seconds)) as pipe:
        if not pipe.poll(GATHERING_SECONDS):
            raise SystemExit("The readers could not all connect.")
        pipe.recv()
        began, busy_before = time.monotonic(), _cpu_seconds(service)
        while time.monotonic() - began < asked.seconds:
            run.step()
        took, busy = time.monotonic() - began, _cpu_seconds(service) - busy_before
        resident = service.memory_info().rss
        seen = told(pipe, run.finish())
    if not seen["delays"]:
        raise SystemExit("No step reached a reader.")
    return {
        "step_to_reader_ms": _percentiles(sorted(seen["delays"])),
        "readers": asked.clients,
        "steps": run.num_steps,
        "lost": seen["lost"],
        "repeated": seen["repeated"],
        "failures": seen["failures"],
        "service_cpu_share": round(busy / took, 2),
        "readers_cpu_share": round(seen["cpu_seconds"] / took, 2),
        "service_mib": round(resident / 2**20, 1),
    }


def over_disconnects(ledger: Database, asked: argparse.Namespace, url: str) -> dict[str, Any]:
    """Readers drop their connections at random bytes, and come back with the number of the last event they saw."""
    run = Run(ledger, asked.rate)
    crowd = Crowd(
        url,
        run.job.id,
        asked.returning_clients,
        asked.seed,
        DISCONNECTING_SECONDS + DRAINING_SECONDS,
        num_disconnects=asked.disconnects,
        disconnecting_seconds=DISCONNECTING_SECONDS,
    )
    began = time.monotonic()
    with sent(crowd) as pipe:
        while not pipe.poll():
            run.step()
        pipe.recv()
        took, num_events = time.monotonic() - began, run.finish()
        seen = told(pipe, num_events)
    return {
        "readers": crowd.num_readers,
        "disconnects": seen["disconnects"],
        "events": num_events,
        "lost": seen["lost"],
        "repeated": seen["repeated"],
        "failures": seen["failures"],
        "seconds": round(took, 1),
    }


def main() -> None:
    """Measure and print."""
    asked = _asked()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # Each reader is an open file of its process.
    with (
        tempfile.TemporaryDirectory() as folder,
        started("service", RATCHET_PORT="0", RATCHET_DATA=folder) as (process, url),
    ):
        ledger = Database(f"sqlite:///{Path(folder) / 'ratchet.db'}")
        live = at_the_live_edge(psutil.Process(process.pid), ledger, asked, url)
        returning = over_disconnects(ledger, asked, url) if asked.disconnects else None
        ledger.close()
    print_row("event_streams", **live, returning=returning, seed=asked.seed, versions=_versions())


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000, help="readers that wait for each step")
    parser.add_argument("--seconds", type=float, default=25.0, help="how long they do")
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second")
    parser.add_argument("--disconnects", type=int, default=10_000, help="in all; 0 leaves this part out")
    parser.add_argument("--returning-clients", type=int, default=200, help="readers that drop their connections")
    parser.add_argument("--seed", type=int, default=0, help="decides where connections are dropped")
    return parser.parse_args()


def _percentiles(ordered: Sequence[float]) -> dict[str, float]:
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * ordered[round(place * (len(ordered) - 1))], 1) for name, place in places.items()}


def _cpu_seconds(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("uvicorn", "starlette", "h11", "httptools", "uvloop"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    main()
