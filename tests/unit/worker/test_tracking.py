"""Trackers of a job: which variables its child gets, and where it goes on."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from core.config import TrainingConfig, config_to_dict, parse
from jobs.tables import Job
from worker.assignment import Assignment, assign
from worker.process import ChildProcess, _minimal
from worker.settings import WorkerSettings


def test_a_child_gets_the_variables_of_trackers_and_none_of_the_services() -> None:
    told = {
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "WANDB_API_KEY": "secret",
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": "/data/trackio",
        "HF_HOME": "/data/hub",
    }
    other = {
        "RATCHET_API_KEY": "k",
        "RATCHET_DATABASE_URL": "postgresql://…",
        "AWS_SECRET_ACCESS_KEY": "s",
        "MY_WANDB_API_KEY": "x",
    }
    given = _minimal({**told, **other}, pipe=3)
    assert {name: given.get(name) for name in told} == told
    assert not set(other) & set(given)


def test_event_files_are_written_into_the_data_folder(tmp_path: Path) -> None:
    job = Job(id="job_1", seq=1, name="x", config={}, training_steps=10, created_at=0.0)
    settings = WorkerSettings(_env_file=None, data=tmp_path)  # type: ignore[call-arg]  # pydantic-settings' own
    assert assign(job, settings, None, None).tracking == str(tmp_path / "tensorboard")


def test_an_attempt_goes_on_in_the_tracker_run_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "sums.md").write_text("What is one and one? It is two. " * 100)
    told = {
        "source": "sums.md",
        "test_mode": True,
        "max_new_tokens": 0,
        "checkpoint_interval": 5,
        "trackers": ["tensorboard"],
        "device": "cpu",
    }

    def attempt(end_step: int, resume: Path | None = None) -> list[Any]:
        child = ChildProcess({**os.environ, "OMP_NUM_THREADS": "1"})
        config = config_to_dict(parse(TrainingConfig, told))
        places = {name: str(tmp_path / name) for name in ("checkpoints", "models", "tracking")}
        sources = str(tmp_path)
        said: list[Any] = []
        try:
            child.assign(
                Assignment(
                    "job_1", 1, 1, config, end_step, sources, start_step=0, resume=resume and str(resume), **places
                )
            )
            deadline = time.monotonic() + 60
            while not child.ended:
                assert time.monotonic() < deadline
                said += child.read(0.05)
        finally:
            child.kill()
            child.close()
        assert said[-1] == ("outcome", {"outcome": "finished"}), list(child.tail)
        return said

    attempt(8)
    (half,) = (tmp_path / "checkpoints").glob("*step000005*")
    attempt(12, half)
    found = EventAccumulator(str(tmp_path / "tracking" / "job_1"), size_guidance={"scalars": 0})
    found.Reload()
    assert [point.step for point in found.Scalars("loss")] == list(range(1, 13))
