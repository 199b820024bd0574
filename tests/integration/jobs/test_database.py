from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from core.errors import ConfigError
from jobs import catalog, feed, lease, line, queue, shelf, workers
from jobs.database import Database
from jobs.errors import LedgerUnavailable
from jobs.lease import LeaseScanner, Succeeded
from jobs.queue import NewJob
from jobs.tables import Checkpoint, State, Worker

SPEC = NewJob("tale", {}, 10)


@pytest.fixture
def impatient(db: Database) -> Iterator[Database]:
    """A second process's view of the same ledger."""
    database = Database(db.url, busy_seconds=0.1)
    yield database
    database.close()


def statements(db: Database) -> list[str]:
    heard: list[str] = []
    for engine in (db.writer, db.reader):
        event.listen(engine, "before_cursor_execute", lambda _c, _d, statement, *_rest: heard.append(statement))
    return heard


def test_every_verb_that_writes_takes_the_write_lock_first(db: Database) -> None:
    heard = statements(db)
    with db.write() as session:
        job = queue.enqueue(session, SPEC).job
    verbs = [
        lambda session: queue.claim(session, "w1", now=0.0),
        lambda session: lease.beat(session, job.id, 1),
        lambda session: feed.record(session, job.id, 1, [("started", {})]),
        lambda session: queue.request_pause(session, job),
        lambda session: LeaseScanner(30.0).scan(session),
        lambda session: queue.wake_due(session, now=0.0),
        lambda session: workers.register_worker(
            session, Worker(id="w1", hostname="h", pid=1, version="0", started_at=0.0, seen_at=0.0)
        ),
        lambda session: lease.finish(session, job.id, 1, Succeeded()),
        lambda session: catalog.delete_job(session, catalog.get_job(session, "local", job.id)),
    ]
    for verb in verbs:
        heard.clear()
        with db.write() as session:
            verb(session)
        assert heard[0] == "BEGIN IMMEDIATE"
        assert heard.count("BEGIN IMMEDIATE") == 1


def test_a_read_begins_plainly_sees_one_state_and_cannot_write(db: Database) -> None:
    heard = statements(db)
    with db.read() as session:
        assert catalog.list_jobs(session, "local", 10) == ([], False)
        with db.write() as writing:
            queue.enqueue(writing, SPEC)
        assert catalog.list_jobs(session, "local", 10) == ([], False)
    assert heard[0] == "BEGIN"
    with pytest.raises(LedgerUnavailable, match="cannot be written"), db.read() as session:
        queue.enqueue(session, SPEC)


@pytest.mark.parametrize("engine", ["writer", "reader"])
def test_a_connection_is_as_durable_as_promised(db: Database, engine: str) -> None:
    with getattr(db, engine).connect() as connection:
        told = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}


def test_what_is_raised_inside_a_transaction_undoes_it(db: Database) -> None:
    def give_up_halfway() -> None:
        with db.write() as session:
            queue.enqueue(session, SPEC)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up_halfway()
    with db.read() as session:
        assert catalog.list_jobs(session, "local", 10) == ([], False)


def test_rows_stay_readable_after_their_transaction(db: Database) -> None:
    with db.write() as session:
        job = queue.enqueue(session, SPEC).job
    assert (job.name, job.seq) == ("tale", 1)


def test_a_ledger_that_another_process_keeps_locked_is_said_to_be_busy(db: Database, impatient: Database) -> None:
    with db.write() as session:
        queue.enqueue(session, SPEC)
        with pytest.raises(LedgerUnavailable, match="busy"), impatient.write() as other:
            queue.enqueue(other, SPEC)
        with impatient.read() as other:
            assert catalog.list_jobs(other, "local", 10) == ([], False)
    with impatient.write() as other:
        assert queue.enqueue(other, SPEC).job.seq == 2


def test_a_thread_that_waits_in_vain_for_its_turn_is_told_so(impatient: Database) -> None:
    with impatient.write() as session:
        queue.enqueue(session, SPEC)
        with pytest.raises(LedgerUnavailable, match="busy"), impatient.write() as other:
            queue.enqueue(other, SPEC)


def test_a_full_disk_loses_nothing_and_is_overcome(db: Database) -> None:
    def set_max_pages(number: int) -> None:
        with db.writer.connect() as connection:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {number}")

    with db.write() as session:
        queue.enqueue(session, SPEC)
    set_max_pages(1)
    with pytest.raises(LedgerUnavailable, match="full"), db.write() as session:
        queue.enqueue(session, NewJob("long", {"text": "x" * 100_000}, 10))
    set_max_pages(1_000_000)
    with db.write() as session:
        assert queue.enqueue(session, SPEC).job.seq == 2


@pytest.mark.parametrize("place", ["ratchet.db", "nowhere/ratchet.db"])
def test_a_ledger_that_does_not_exist_is_not_made_by_reading_it(tmp_path: Path, place: str) -> None:
    database = Database(f"sqlite:///{tmp_path}/{place}")
    with pytest.raises(LedgerUnavailable, match="cannot be opened"):
        database.ping()
    database.close()
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    database = Database(f"sqlite:///{tmp_path}/file/ratchet.db")
    with pytest.raises(LedgerUnavailable, match="cannot be set up"):
        database.migrate()
    database.close()


def test_a_file_that_is_no_database_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "ratchet.db").write_bytes(b"no database at all, " * 100)
    database = Database(f"sqlite:///{tmp_path}/ratchet.db")
    with pytest.raises(LedgerUnavailable, match="not a SQLite database"):
        database.ping()
    with pytest.raises(LedgerUnavailable, match="not a SQLite database"):
        database.migrate()
    database.close()


def test_a_ledger_without_tables_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "ratchet.db").touch()
    database = Database(f"sqlite:///{tmp_path}/ratchet.db")
    with pytest.raises(LedgerUnavailable, match="migrated"):
        database.ping()
    database.migrate()
    database.ping()
    database.close()


def test_our_own_mistakes_are_not_called_outages(db: Database) -> None:
    with pytest.raises(OperationalError, match="syntax"), db.read() as session:
        session.connection().exec_driver_sql("SELEKT 1")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "must look like"),
        ("sqlite://", "must name a SQLite file"),
        ("sqlite:///:memory:", "must name a SQLite file"),
        ("postgresql://localhost", "must name a database"),
        ("mysql://localhost/ratchet", "is for mysql"),
    ],
)
def test_a_url_that_names_no_ledger_is_a_mistake_in_the_settings(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"database_url.*{said}"):
        Database(url)


def test_postgresql_without_its_driver_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'ratchet\[postgres\]'"):
        Database("postgresql://localhost/ratchet")


def test_a_claim_reads_the_index_and_nothing_else(db: Database) -> None:
    heard = statements(db)
    with db.write() as session:
        queue.claim(session, "w1", now=0.0)
    claim = next(statement for statement in heard if statement.startswith("UPDATE"))
    with closing(sqlite3.connect(db.dialect.path)) as connection:
        parameters = ["x"] * claim.count("?")
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {claim}", parameters)]
    assert any("USING INDEX ix_job_claim (state=?)" in step for step in plan), plan
    assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan), plan


def plans(db: Database, asked: list[str]) -> list[list[str]]:
    """How SQLite goes about each of these statements."""
    with closing(sqlite3.connect(db.dialect.path)) as connection:
        return [
            [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {query}", ["x"] * query.count("?"))]
            for query in asked
        ]


def test_a_page_of_jobs_needs_no_sorting(db: Database) -> None:
    heard = statements(db)
    with db.write() as session:
        last = queue.enqueue(session, SPEC).job
        catalog.list_jobs(session, "local", 10, last.id)
        catalog.list_jobs(session, "local", 10, last.id, source="tale.md")
        catalog.list_jobs(session, "local", 10, last.id, model="gpt2")
        catalog.list_jobs(session, "local", 10, last.id, states=[State.FAILED])
    pages = plans(db, [statement for statement in heard if "ORDER BY" in statement])
    assert len(pages) == 4
    for plan in pages:
        assert len(plan) == 1, plan
        assert "USING INDEX ix_job_newest" in plan[0]


def test_the_line_and_a_page_of_events_are_read_by_index_in_order(db: Database) -> None:
    heard = statements(db)
    with db.write() as session:
        job = queue.enqueue(session, SPEC).job
        heard.clear()
        feed.after(session, job.id, 0)
        line.waiting(session, "local", 10)
    events, waiting = plans(db, [statement for statement in heard if statement.startswith("SELECT")])
    assert events == ["SEARCH event USING PRIMARY KEY (job_id=? AND seq>?)"]
    assert waiting == ["SEARCH job USING INDEX ix_job_claim (state=?)"]


def test_checkpoints_that_are_gone_cost_no_list_anything(db: Database) -> None:
    heard = statements(db)
    with db.write() as session:
        job = queue.enqueue(session, SPEC).job
        last = Checkpoint(id="c1", name="c1", path="c1", job_id=job.id, step=1, created_at=0.0)
        catalog.adopt_checkpoint(session, last)
        heard.clear()
        catalog.list_checkpoints(session, "local", 10, "c1")
        catalog.latest_checkpoint(session, job.id)
        shelf.known_names(session, ["c1"])
        shelf.removed_names(session, ["c1"])
        shelf.leaving_names(session)
        catalog.earlier_of_run(session, Checkpoint(id="c2", name="c2", path="c2", run="r", step=2, created_at=0.0))
    _, page, latest, known, removed, leaving, earlier = plans(db, [said for said in heard if said.startswith("SELECT")])
    assert page == ["SEARCH checkpoint USING INDEX ix_checkpoint_newest (owner=? AND (created_at,id)<(?,?))"]
    assert leaving == ["SCAN checkpoint USING INDEX ix_checkpoint_leaving"]
    assert earlier[0] == "SEARCH checkpoint USING INDEX ix_checkpoint_run (run=? AND step<?)"
    assert latest[0] == "SEARCH checkpoint USING INDEX ix_checkpoint_job (job_id=? AND removed_at=?)"
    for plan in (known, removed):
        assert "(name=?)" in plan[0]


def test_who_starts_from_a_checkpoint_is_looked_for_among_the_unfinished_alone(db: Database) -> None:
    heard = statements(db)
    with db.write() as session:
        row = Checkpoint(id="c1", name="c1", path="c1", step=1, created_at=0.0)
        catalog.adopt_checkpoint(session, row)
        shelf.remove(session, row, lambda _: True)
    (plan,) = plans(db, [said for said in heard if "FROM job" in said])
    assert plan == ["SEARCH job USING INDEX ix_job_claim (state=?)"]
