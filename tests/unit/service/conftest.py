from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.settings import ServiceSettings

Settled = Callable[..., ServiceSettings]


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settled:
    """Settings that know nothing of this machine's environment."""
    monkeypatch.chdir(tmp_path)

    def settled(**given: Any) -> ServiceSettings:
        return ServiceSettings(**{"data": tmp_path, "_env_file": None, **given})

    return settled
