from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel

from jobs.database import Database
from jobs.errors import LedgerNewer
from jobs.migrations import REVISION

OUTER_COMMA = re.compile(r",(?![^(]*\))")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path}/data/ratchet.db")
    yield database
    database.close()


def backups(db: Database) -> list[str]:
    return sorted(path.name for path in db.dialect.path.parent.glob("*.bak*"))


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()


def test_an_empty_ledger_gets_its_tables_and_no_backup(fresh: Database) -> None:
    fresh.migrate()
    fresh.ping()
    assert backups(fresh) == []


def test_nobody_else_on_the_machine_can_read_the_ledger_or_its_backup(fresh: Database) -> None:
    fresh.dialect.path.parent.mkdir()
    fresh.migrate()
    with fresh.writer.begin() as connection:
        connection.exec_driver_sql("DROP TABLE alembic_version")
        for table in ("worker", "checkpoint", "event", "job"):
            connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO old_{table}")
        for index in connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE name LIKE 'ix%'").all():
            connection.exec_driver_sql(f"DROP INDEX {index[0]}")
        assert (fresh.dialect.path.with_name("ratchet.db-wal").stat().st_mode & 0o077) == 0
    fresh.migrate()
    for path in fresh.dialect.path.parent.glob("ratchet.db*"):
        if not path.name.endswith(".lock"):
            assert path.stat().st_mode & 0o077 == 0, path.name
    assert len(backups(fresh)) == 1


def test_migrating_again_changes_nothing(fresh: Database) -> None:
    fresh.migrate()
    before = schema(fresh.dialect.path)
    fresh.migrate()
    assert schema(fresh.dialect.path) == before
    assert backups(fresh) == []


def test_the_revisions_make_exactly_the_tables(db: Database) -> None:
    def comparable(_object: object, name: str | None, *_: object) -> bool:
        # SQLite does not tell the directions inside an index; the next test compares this one word for word.
        return name != "ix_job_claim"

    with db.writer.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": comparable})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_checks_keys_and_index_order_are_those_of_the_tables_too(db: Database, tmp_path: Path) -> None:
    """Autogenerate overlooks constraints, the order inside an index and tables without row ids."""
    (tmp_path / "made.db").touch()
    made = Database(f"sqlite:///{tmp_path}/made.db")
    SQLModel.metadata.create_all(made.writer)
    made.close()

    def said(path: Path) -> dict[str, list[str]]:
        return {
            name: sorted(" ".join(part.split()) for part in OUTER_COMMA.split(body_of(sql or "")))
            for name, sql in schema(path)
            if "alembic" not in name
        }

    def body_of(sql: str) -> str:
        # A column that was added later stands behind the constraints.
        return sql.partition("(")[2].rpartition(")")[0] if sql.startswith("CREATE TABLE") else sql

    assert said(db.dialect.path) == said(made.dialect.path)


def test_a_ledger_with_something_in_it_is_backed_up_before_it_changes(fresh: Database) -> None:
    fresh.dialect.path.parent.mkdir()
    with closing(sqlite3.connect(fresh.dialect.path)) as connection:
        connection.execute("CREATE TABLE diary (line TEXT)")
        connection.execute("INSERT INTO diary VALUES ('dear')")
        connection.commit()
    fresh.migrate()
    fresh.ping()
    assert backups(fresh) == [f"ratchet.db.before-{REVISION}.bak"]
    with closing(sqlite3.connect(fresh.dialect.path.with_name(f"ratchet.db.before-{REVISION}.bak"))) as connection:
        assert connection.execute("SELECT line FROM diary").fetchall() == [("dear",)]
        assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (1,)


def test_a_migration_that_fails_leaves_the_ledger_as_it_was(fresh: Database) -> None:
    fresh.dialect.path.parent.mkdir()
    with closing(sqlite3.connect(fresh.dialect.path)) as connection:
        connection.execute("CREATE TABLE worker (line TEXT)")
    before = schema(fresh.dialect.path)
    with pytest.raises(Exception, match="already exists"):
        fresh.migrate()
    assert schema(fresh.dialect.path) == before


def test_several_processes_may_start_at_once(fresh: Database) -> None:
    databases = [Database(fresh.url) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(Database.migrate, databases))
    for database in databases:
        database.ping()
        database.close()


def test_a_ledger_of_a_later_release_is_left_alone(fresh: Database) -> None:
    fresh.migrate()
    with fresh.writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    before = schema(fresh.dialect.path)
    with pytest.raises(LedgerNewer, match="9999"):
        fresh.migrate()
    assert schema(fresh.dialect.path) == before
    assert backups(fresh) == []


def test_a_percent_sign_in_the_folder_is_no_obstacle(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path}/100%/ratchet.db")
    database.migrate()
    database.ping()
    database.close()
