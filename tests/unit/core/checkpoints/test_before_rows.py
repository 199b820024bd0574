from __future__ import annotations

from typing import Any

import pytest

from core.checkpoints.resume_rules import ResumeMode
from core.config import TrainingConfig, config_to_dict, resume_config
from core.errors import CheckpointMismatch


def saved(source: str, *, with_rows: bool = False) -> dict[str, Any]:
    """What a checkpoint of the first release says, or one of a release that knows rows."""
    config = config_to_dict(TrainingConfig(source=source, test_mode=True))
    if not with_rows:
        for name in ("method", "sources", "columns", "packing"):
            del config[name]
    return {"config": config, "step": 10, "end_step": 20, "source_sha256": "0" * 64}


@pytest.mark.parametrize("mode", [ResumeMode.EXACT, ResumeMode.EXTEND])
@pytest.mark.parametrize("source", ["rows.jsonl", "deep/table.CSV", "all.json"])
def test_what_was_learnt_as_text_does_not_go_on_as_rows(source: str, mode: ResumeMode) -> None:
    with pytest.raises(CheckpointMismatch, match=rf"learnt '{source}' as plain text.*ends in .txt, or with mode"):
        resume_config(saved(source), {}, mode)


@pytest.mark.parametrize("mode", [ResumeMode.EXACT, ResumeMode.EXTEND])
def test_under_a_name_of_text_it_goes_on(mode: ResumeMode) -> None:
    config, differences = resume_config(saved("rows.jsonl"), {"source": "rows.txt"}, mode)
    assert (config.source, config.method) == ("rows.txt", "auto")
    assert "source" in {item.field for item in differences}


def test_a_fresh_optimizer_may_learn_the_rows() -> None:
    assert resume_config(saved("rows.jsonl"), {}, ResumeMode.WARM_START)[0].source == "rows.jsonl"


def test_text_and_what_was_learnt_as_rows_go_on_as_ever() -> None:
    assert resume_config(saved("tale.md"), {}, ResumeMode.EXACT)
    assert resume_config(saved("rows.jsonl", with_rows=True), {}, ResumeMode.EXACT)
