from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database


@pytest.fixture
def db(migrated: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated, tmp_path / "ratchet.db")
    database = Database(f"sqlite:///{tmp_path / 'ratchet.db'}", busy_seconds=30.0)
    yield database
    database.close()
