from __future__ import annotations

from pathlib import Path

from core.checkpoints.manifest import Checkpoint, new_manifest
from jobs.tables import Job
from worker.assignment import assign
from worker.settings import WorkerSettings


def test_a_checkpoint_names_what_its_run_resumed_however_often_the_run_was_interrupted(tmp_path: Path) -> None:
    job = Job(id="job_1", seq=1, name="x", config={}, training_steps=10, created_at=0.0, parent_checkpoint="c1")
    own = Checkpoint(tmp_path, new_manifest(model="m", source="s.md", step=5, end_step=10, config={}))
    settings = WorkerSettings(_env_file=None, data=tmp_path)  # type: ignore[call-arg]  # pydantic-settings' own
    first, second = assign(job, settings, None, None), assign(job, settings, own, None)
    assert (first.parent, second.parent) == ("c1", "c1")
    assert second.resume == str(tmp_path)
