"""Workers on a ledger that is elsewhere: a server that restarts, a network that swallows answers or everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from jobs.database import Database
from jobs.tables import State
from tests.integration.worker.conftest import FOREVER, Bench
from tests.postgres import PostgresServer
from tests.proxy import Proxy

LEASE = 6.0


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    proxy = Proxy(postgres.port)
    yield proxy
    proxy.close()


@pytest.fixture
def away(postgres: PostgresServer, tmp_path: Path) -> Iterator[Bench]:
    """A bench whose ledger is on the server."""
    bench = Bench(tmp_path, postgres.make_database())
    yield bench
    bench.close()


@pytest.fixture
def through(proxy: Proxy, away: Bench) -> Callable[..., str]:
    """The same ledger's address behind the proxy."""
    server, _, name = away.db.url.rpartition("/")
    return lambda: f"{server.rpartition(':')[0]}:{proxy.port}/{name}"


def test_a_worker_cut_off_from_its_ledger_ends_its_run_before_another_takes_it(
    away: Bench, proxy: Proxy, through: Callable[..., str]
) -> None:
    times = {"LEASE_SECONDS": LEASE, "HEARTBEAT_SECONDS": 0.3, "SCAN_SECONDS": 0.2}
    job_id = away.submit(**FOREVER)
    cut_off = away.worker(DATABASE_URL=through(), **times)
    away.until_step(job_id, 1)
    child = psutil.Process(away.child_of(cut_off))
    proxy.freeze()
    frozen = time.monotonic()
    other = away.worker(**times)
    away.when(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, seconds=LEASE)
    assert time.monotonic() - frozen < LEASE
    assert away.job(job_id).fence == 1, "another had taken it while it still ran"
    job = away.when(lambda: (job := away.job(job_id)).fence == 2 and job.state is State.RUNNING and job, seconds=30)
    proxy.thaw()
    step = job.step
    away.until_step(job_id, step + 200)
    log = away.log_of(job_id)
    attempts = [event.attempt for event in away.events(job_id)]
    assert attempts == sorted(attempts)
    assert [kind for kind, _ in log].count("resumed") == 1
    assert away.job(job_id).worker_id.startswith(f"{away.job(job_id).worker_id.rsplit('-', 2)[0]}-{other.pid}-")


def test_a_run_outlives_restarts_of_its_server_with_every_event_once(away: Bench, postgres: PostgresServer) -> None:
    undisturbed = away.submit()
    away.worker(LEASE_SECONDS=20)
    away.until_final(undisturbed)
    job_id = away.submit(training_steps=400, checkpoint_interval=100)
    for mode in ("fast", "immediate"):
        away.until_step(job_id, 20 if mode == "fast" else 150)
        postgres.stop(mode)
        time.sleep(0.5)
        postgres.start()
    assert away.until_final(job_id).state is State.SUCCEEDED
    steps = [data["step"] for kind, data in away.log_of(job_id) if kind == "step"]
    assert steps == list(range(1, 401))
    assert away.job(job_id).attempt == 1


def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    away: Bench, proxy: Proxy, through: Callable[..., str]
) -> None:
    job_id = away.submit(training_steps=400, checkpoint_interval=400)
    away.worker(DATABASE_URL=through(), LEASE_SECONDS=20)
    for step in (10, 100, 200):
        away.until_step(job_id, step)
        proxy.swallow_answer_to(b"COMMIT")
    assert away.until_final(job_id).state is State.SUCCEEDED
    assert proxy.num_cut >= 2
    steps = [data["step"] for kind, data in away.log_of(job_id) if kind == "step"]
    assert steps == list(range(1, 401))


def test_a_ledger_on_a_server_says_where_it_is_without_the_password(away: Bench) -> None:
    assert isinstance(away.db, Database)
    assert away.db.dialect.place.startswith("database ledger_")
