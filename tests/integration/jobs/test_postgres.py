"""What holds on PostgreSQL in particular; what holds on both is in the unit tests and in test_races."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import event, text
from sqlalchemy.exc import ProgrammingError
from sqlmodel import SQLModel

from jobs import catalog, curves, feed, lease, queue
from jobs.database import Database
from jobs.errors import LedgerNewer, LedgerUnavailable
from jobs.lease import LeaseScanner
from jobs.queue import NewJob
from jobs.tables import Checkpoint, Job, State
from tests.postgres import PostgresServer

SPEC = NewJob("tale", {}, 10)


@pytest.fixture
def impatient(pg: Database) -> Iterator[Database]:
    """A second process's view of the same ledger."""
    database = Database(pg.url, busy_seconds=0.2)
    yield database
    database.close()


def put_in_line(ledger: Database, **given: Any) -> Any:
    with ledger.write() as session:
        return queue.enqueue(session, NewJob("tale", {}, 10, **given)).job


def test_the_revisions_make_exactly_the_tables(pg: Database) -> None:
    with pg.writer.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), SQLModel.metadata) == []


def test_several_processes_may_start_at_once(postgres: PostgresServer) -> None:
    url = postgres.make_database()
    databases = [Database(url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, databases))
    for database in databases:
        database.ping()
        database.close()


def test_a_ledger_of_a_later_release_is_left_alone(pg: Database) -> None:
    with pg.writer.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerNewer, match="9999"):
        pg.migrate()


def test_a_read_sees_one_state_and_cannot_write(pg: Database) -> None:
    with pg.read() as session:
        assert catalog.list_jobs(session, "local", 10) == ([], False)
        put_in_line(pg)
        assert catalog.list_jobs(session, "local", 10) == ([], False)
    with pytest.raises(LedgerUnavailable, match="read-only"), pg.read() as session:
        session.execute(text("DELETE FROM job"))


def test_a_ledger_that_another_process_keeps_locked_is_said_to_be_busy(pg: Database, impatient: Database) -> None:
    with pg.write() as session:
        queue.enqueue(session, SPEC)
        with pytest.raises(LedgerUnavailable, match="busy"):
            put_in_line(impatient)
    assert put_in_line(impatient).seq == 2


def test_a_claim_passes_over_a_job_that_is_being_claimed(pg: Database, impatient: Database) -> None:
    first, second = put_in_line(pg), put_in_line(pg)
    with pg.write() as session:
        assert queue.claim(session, "w1", now=0.0).id == first.id
        with impatient.write() as other:
            assert queue.claim(other, "w2", now=0.0).id == second.id
            assert queue.claim(other, "w2", now=0.0) is None


def test_of_two_that_begin_on_one_device_at_once_one_gets_it(pg: Database) -> None:
    put_in_line(pg), put_in_line(pg)
    together = threading.Barrier(2)

    def claim(name: str) -> bool:
        with pg.write() as session:
            together.wait()
            return queue.claim(session, name, now=0.0, device="GPU-1") is not None

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(claim, ["w1", "w2"])) == [False, True]


def test_a_scan_takes_no_job_that_is_being_renewed_just_now(pg: Database) -> None:
    put_in_line(pg)
    now = [0.0]
    scanner = LeaseScanner(30.0, clock=lambda: now[0])

    def scan(moment: float) -> list[State]:
        now[0] = moment
        with pg.write() as session:
            return [job.state for job in scanner.scan(session)]

    with pg.write() as session:
        job = queue.claim(session, "w1", now=0.0)
    assert scan(0.0) == []
    with pg.write() as renewing:
        lease.beat(renewing, job.id, job.fence)
        assert scan(31.0) == []
    assert scan(32.0) == []
    assert scan(63.0) == [State.RETRY_WAIT]


def test_a_checkpoint_that_is_found_while_its_run_registers_it_is_entered_once(pg: Database) -> None:
    put_in_line(pg)
    with pg.write() as session:
        job = queue.claim(session, "w1", now=0.0)
    together = threading.Barrier(2)

    def register() -> None:
        with pg.write() as session:
            together.wait()
            feed.record(session, job.id, job.fence, [("checkpoint", {"step": 5, "id": "c1", "name": "checkpoint_c1"})])

    def adopt() -> None:
        with pg.write() as session:
            together.wait()
            found = Checkpoint(id="c1", name="checkpoint_c1", step=5, path="checkpoint_c1", created_at=0.0)
            catalog.adopt_checkpoint(session, found)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(register), pool.submit(adopt)]:
            done.result(timeout=20)
    with pg.read() as session:
        assert [row.id for row in catalog.list_checkpoints(session, "local", 10)[0]] == ["c1"]


def test_a_server_that_restarts_is_an_outage_and_then_goes_on(postgres: PostgresServer) -> None:
    ledger = Database(postgres.make_database(), busy_seconds=2.0)
    ledger.migrate()
    first = put_in_line(ledger)
    for mode in ("fast", "immediate"):
        postgres.stop(mode)
        with pytest.raises(LedgerUnavailable, match="connection to the ledger's database was lost"):
            put_in_line(ledger)
        with pytest.raises(LedgerUnavailable):
            ledger.ping()
        postgres.start()
        ledger.ping()
    assert put_in_line(ledger).seq == first.seq + 1
    ledger.close()


def test_a_transaction_that_loses_its_server_leaves_nothing_behind(postgres: PostgresServer) -> None:
    ledger = Database(postgres.make_database(), busy_seconds=2.0)
    ledger.migrate()

    def be_cut_off() -> None:
        with ledger.write() as session:
            queue.enqueue(session, SPEC)
            postgres.stop("immediate")
            postgres.start()
            queue.enqueue(session, SPEC)

    with pytest.raises(LedgerUnavailable):
        be_cut_off()
    with ledger.read() as session:
        assert catalog.list_jobs(session, "local", 10) == ([], False)
    ledger.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [("postgresql://ratchet@127.0.0.1:1/x", "connection .* lost"), ("/nowhere", "does not exist")],
    ids=["nobody-listens", "no-such-database"],
)
def test_a_server_that_cannot_be_used_is_an_outage(postgres: PostgresServer, url: str, said: str) -> None:
    database = Database(url if ":" in url else postgres.make_database().rpartition("/")[0] + url, busy_seconds=1.0)
    with pytest.raises(LedgerUnavailable, match=said):
        database.migrate()
    database.close()


def test_a_ledger_without_tables_is_not_ready(postgres: PostgresServer) -> None:
    database = Database(postgres.make_database())
    with pytest.raises(LedgerUnavailable, match="migrated"):
        database.ping()
    database.close()


def test_our_own_mistakes_are_not_called_outages(pg: Database) -> None:
    with pytest.raises(ProgrammingError, match="syntax"), pg.read() as session:
        session.connection().exec_driver_sql("SELEKT 1")


def test_the_password_is_not_told(postgres: PostgresServer) -> None:
    assert "secret" not in Database("postgresql://me:secret@example.test/ledger").dialect.place


def test_a_transaction_that_dawdles_is_ended_by_the_server_and_that_is_an_outage(impatient: Database) -> None:
    def dawdle() -> None:
        with impatient.write() as session:
            queue.enqueue(session, SPEC)
            time.sleep(1)
            queue.enqueue(session, SPEC)

    with pytest.raises(LedgerUnavailable, match=r"gave up waiting|was lost"):
        dawdle()
    assert put_in_line(impatient).seq == 1


def test_a_lost_job_is_found_although_others_are_at_its_row_now_and_then(pg: Database) -> None:
    put_in_line(pg)
    now = [0.0]
    scanners = [LeaseScanner(10.0, clock=lambda: now[0]) for _ in range(2)]
    with pg.write() as session:
        queue.claim(session, "w1", now=0.0)
    lost: list[Any] = []
    for moment in range(0, 13):
        now[0] = float(moment)
        with pg.write() as first, pg.write() as second:
            lost += scanners[0].scan(first) + scanners[1].scan(second)
    assert [job.state for job in lost] == [State.RETRY_WAIT]


def test_a_claim_and_a_page_of_events_are_read_by_index(pg: Database) -> None:
    heard: list[tuple[str, Any]] = []
    with pg.write() as session:
        job = queue.enqueue(session, SPEC).job
        for seq in range(2, 2000):
            session.add(Job(**{**job.model_dump(), "id": f"job_{seq}", "seq": seq, "place": seq}))
        session.flush()
        session.execute(text("ANALYZE job"))
        event.listen(pg.writer, "before_cursor_execute", lambda *told: heard.append(told[2:4]))
        queue.claim(session, "w1", now=0.0)
        feed.after(session, job.id, 5)
        claim, page = ((said, how) for said, how in heard if said.startswith(("UPDATE job", "SELECT event")))
        plans = ["\n".join(row[0] for row in explained(session, *asked)) for asked in (claim, page)]
    assert "Index Scan using ix_job_claim" in plans[0]
    assert "event_pkey" in plans[1]
    assert "Sort" not in plans[0]


def test_a_page_of_a_curve_is_read_backwards_by_index(pg: Database) -> None:
    heard: list[tuple[str, Any]] = []
    put_in_line(pg)
    with pg.write() as session:
        job = queue.claim(session, "w1", now=0.0)
        steps = [("step", {"step": step, "loss": 1.0}) for step in range(1, 20_001)]
        feed.record(session, job.id, job.fence, steps)
    with pg.writer.begin() as connection:
        connection.execute(text("ANALYZE event"))
    with pg.read() as session:
        job = catalog.get_job(session, "local", job.id)
    event.listen(pg.reader, "before_cursor_execute", lambda *told: heard.append(told[2:4]))
    curve = curves.draw(pg.read, job, num_points=100, after_step=19_990)
    assert [point["step"] for point in curve.steps] == list(range(19_991, 20_001))
    (page,) = [asked for asked in heard if asked[0].startswith("SELECT event")]
    with pg.read() as session:
        plan = "\n".join(row[0] for row in explained(session, *page))
    assert "Index Scan Backward using event_pkey" in plan
    assert "Sort" not in plan


def explained(session: Any, statement: str, parameters: Any) -> Any:
    return session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)
