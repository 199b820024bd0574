"""Every test starts from the same environment: no setting of the person who runs it, no hub, few threads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.config import ENVIRONMENT

PROJECT = Path(__file__).resolve().parent.parent

FOREIGN = {*ENVIRONMENT, "CHECKPOINT_PATH", "RESUME_STEPS", "RESUME_MODE"}


@pytest.fixture(autouse=True)
def _isolated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("RATCHET_") or name in FOREIGN:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hugging-face"))
    # A .env file of the checkout is the developer's, not the test's.
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def bundled_source() -> Path:
    return PROJECT / "sources" / "training_data_final_merged.md"
