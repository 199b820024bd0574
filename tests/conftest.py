"""Every test starts from the same environment: no setting of the person who runs it, no hub, few threads."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.config import ENVIRONMENT
from tests.postgres import PostgresServer

PROJECT = Path(__file__).resolve().parent.parent

FOREIGN = {*ENVIRONMENT, "CHECKPOINT_PATH", "RESUME_STEPS", "RESUME_MODE"}


def skip_unless(condition: object, reason: str) -> None:
    """Skip a test that this machine cannot run; where `CI` is set every test has to run, so there it fails."""
    if condition:
        return
    if os.environ.get("CI"):
        pytest.fail(f"cannot be tested here, and has to be: {reason}")
    pytest.skip(reason)


# Modules that are imported while tests are collected stay to the end, so nobody need look there for garbage.
gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("RATCHET_") or name in FOREIGN:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))
    # A .env file of the checkout is the developer's, not the test's.
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server of our own, started when the first test asks for it."""
    skip_unless(PostgresServer.programs(), "PostgreSQL's server is not installed (Debian: apt-get install postgresql)")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def bundled_source() -> Path:
    return PROJECT / "sources" / "training_data_final_merged.md"
