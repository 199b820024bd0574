from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.database import Database


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    db = Database(f"sqlite:///{tmp_path / 'ratchet.db'}")
    db.migrate()
    yield db
    db.close()
