from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database
from tests.postgres import PostgresServer

PATIENCE = 30.0


@pytest.fixture
def db(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated, tmp_path / "ratchet.db")
    database = Database(f"sqlite:///{tmp_path / 'ratchet.db'}", busy_seconds=PATIENCE)
    yield database
    database.close()


@pytest.fixture
def pg(postgres: PostgresServer) -> Iterator[Database]:
    """The same on PostgreSQL."""
    database = Database(postgres.make_database(), busy_seconds=PATIENCE)
    database.migrate()
    yield database
    database.close()
    postgres.drop(database.url)
