from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger, made once and copied for each test."""
    path = tmp_path_factory.mktemp("ledger") / "ratchet.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture
def db(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated, tmp_path / "ratchet.db")
    database = Database(f"sqlite:///{tmp_path / 'ratchet.db'}", busy_seconds=30.0)
    yield database
    database.close()
