from __future__ import annotations

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
