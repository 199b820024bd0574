from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from core.config import TrainingConfig
from jobs.tables import Job, State
from service.schemas import JobIn, JobOut, ResumeIn, iso_time


def job(**given: Any) -> Job:
    columns = {"name": "tale", "config": {"batch_size": 4, "block_size": 32}, "training_steps": 100, "created_at": 0.0}
    return Job(**{"seq": 1, "state": State.RUNNING, **columns, **given})


def test_times_are_utc_and_end_in_z() -> None:
    assert iso_time(1_700_000_000.25) == "2023-11-14T22:13:20.250Z"


def test_progress_counts_from_where_the_run_started() -> None:
    assert JobOut.of(job(start_step=50, step=75)).progress == 0.25


def test_a_job_that_succeeded_is_all_done() -> None:
    assert JobOut.of(job(state=State.SUCCEEDED, step=0)).progress == 1.0


def test_the_time_left_follows_from_the_pace() -> None:
    assert JobOut.of(job(step=50, tokens_per_second=64.0)).eta_seconds == 100.0


@pytest.mark.parametrize("pace", [None, 0.0, float("nan"), float("inf")])
def test_without_a_pace_the_time_left_is_unknown(pace: float | None) -> None:
    assert JobOut.of(job(tokens_per_second=pace)).eta_seconds is None


def test_numbers_that_json_lacks_become_null() -> None:
    answer = JobOut.of(job(train_loss=float("nan"), val_loss=float("inf"), config={"x": float("nan")}))
    assert '"train_loss":null,"val_loss":null' in answer.model_dump_json()
    assert answer.config == {"x": None}


def test_every_setting_of_a_run_may_be_overridden_and_keeps_its_bounds() -> None:
    assert set(TrainingConfig.model_fields) <= set(ResumeIn.model_fields)
    with pytest.raises(ValidationError):
        ResumeIn.model_validate({"learning_rate": 11})
    assert ResumeIn.model_validate({"learning_rate": 0.5}).overrides() == {"learning_rate": 0.5}


def test_resume_steps_is_another_name_for_training_steps() -> None:
    assert ResumeIn.model_validate({"resume_steps": 7}).overrides() == {"training_steps": 7}
    assert ResumeIn.model_validate({"resume_steps": 7, "training_steps": 7}).overrides() == {"training_steps": 7}
    with pytest.raises(ValidationError, match="give one of them"):
        ResumeIn.model_validate({"resume_steps": 7, "training_steps": 8})


@pytest.mark.parametrize("name", ["", "x" * 201, "bell\x07", "esc\x1b[31m", "nul\x00"])
def test_names_that_a_terminal_would_obey_are_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        JobIn.model_validate({"name": name})


@pytest.mark.parametrize(
    "metadata", [{str(n): "" for n in range(17)}, {"k" * 65: "v"}, {"k": "v" * 513}, {"k": 1}, {"": "v"}]
)
def test_metadata_has_bounds(metadata: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        JobIn.model_validate({"metadata": metadata})
