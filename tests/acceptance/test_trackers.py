"""A script's numbers in TensorBoard, as a person asks for them."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.acceptance.test_scripts import lay_out, script


def losses(folder: Path) -> list[int]:
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    found.Reload()
    return [point.step for point in found.Scalars("loss")]


def test_a_script_that_resumes_goes_on_in_its_event_files(tmp_path: Path, bundled_source: Path) -> None:
    lay_out(tmp_path, bundled_source)
    told = {"TEST_MODE": "True", "TRACKERS": "tensorboard", "TRAINING_STEPS": "10", "MAX_NEW_TOKENS": "5"}
    done = script(tmp_path, **told)
    assert done.returncode == 0, done.stderr
    assert "⚠️" not in done.stdout
    (last,) = (tmp_path / "checkpoints").glob("*step000010*")
    done = script(tmp_path, **told, CHECKPOINT_PATH=str(last))
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "tensorboard").iterdir()
    assert losses(run) == list(range(1, 21))
