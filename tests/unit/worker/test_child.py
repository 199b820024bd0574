from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.config import TrainingConfig, config_to_dict
from core.errors import CheckpointMismatch
from worker import child
from worker.assignment import Assignment


def test_a_job_of_a_release_before_rows_is_not_gone_on_with_in_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was learning a table as text when its worker was replaced by a newer one."""
    config = config_to_dict(TrainingConfig(source="table.csv", test_mode=True))
    del config["method"]
    opened: dict[str, Any] = {"config": config}
    monkeypatch.setattr(child, "_opened", lambda *_: opened)
    places = {"sources": str(tmp_path), "checkpoints": str(tmp_path), "models": str(tmp_path)}
    assignment = Assignment("job_1", 2, 2, config, 20, **places, resume=str(tmp_path))
    with pytest.raises(CheckpointMismatch, match=r"learnt 'table\.csv' as plain text"):
        child.train(assignment, None, lambda: False)
