from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chaos.__main__ import rage


@pytest.mark.timeout(240)
def test_whatever_is_killed_nothing_is_lost(tmp_path: Path) -> None:
    """A short storm; `make chaos` is the long one."""
    told = rage(tmp_path, seed=20_26, num_kills=25, seconds=60, settle_seconds=60)
    assert told["violations"] == [], json.dumps(told, indent=1)
    assert told["kills"] >= 10
    assert told["jobs"].get("succeeded", 0) >= 3
    assert told["fired"]
    assert told["followed_to_the_end"] >= 1
