from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from jobs.tables import Job
from worker.gpus import Gpu, GpuLock
from worker.slots import Slot, all_vacant, make_slots

TWO = [Gpu(0, "GPU-a", "NVIDIA H100", "80 GiB"), Gpu(1, "GPU-b", "NVIDIA H100", "80 GiB")]
JOB = Job(id="job_a", name="a", config={}, training_steps=1, created_at=0, seq=1)


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize(
    ("capacity", "gpus", "seen"),
    [
        (0, [], [None]),
        (0, None, [""]),
        (2, None, ["", ""]),
        (3, [], [None, None, None]),
        (0, TWO, ["GPU-a", "GPU-b"]),
        (1, TWO, ["GPU-a"]),
        (4, TWO, ["GPU-a", "GPU-b", "", ""]),
    ],
)
def test_each_gpu_has_a_place_and_further_places_see_none(
    capacity: int, gpus: list[Gpu] | None, seen: list[str | None]
) -> None:
    slots = make_slots(capacity, gpus)
    assert [slot.visible_devices for slot in slots] == seen
    assert [slot.device for slot in slots] == [each or None for each in seen]


def test_a_gpu_that_another_has_is_refused_and_that_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    other, slot = GpuLock("GPU-a"), Slot(TWO[0], "GPU-a")
    assert other.take()
    with caplog.at_level(logging.WARNING):
        assert [slot.reserve() for _ in range(3)] == [False] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "no job is taken for GPU GPU-a (NVIDIA H100): another process trains on it"
    ]
    other.give_back()
    assert slot.reserve()
    slot.vacate()
    assert other.take(), "whoever comes next can have it"
    other.give_back()
    assert slot.reserve()
    slot.vacate()


def test_a_lock_that_cannot_be_opened_is_a_reason_and_no_crash(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ratchet-gpu-GPU-a.lock").symlink_to("elsewhere")
    assert not Slot(TWO[0]).reserve()
    assert "its lock file cannot be opened" in caplog.text


def test_a_place_is_taken_until_its_job_is_done_and_then_says_so() -> None:
    slot, go_on, free = Slot(TWO[0]), threading.Event(), threading.Event()
    assert slot.reserve()
    slot.begin(JOB, lambda: bool(go_on.wait(5)) or None, free.set)
    assert slot.job is JOB
    assert not GpuLock("GPU-a").take()
    assert not all_vacant([slot], time.monotonic() + 0.05)
    go_on.set()
    assert free.wait(5)
    assert slot.job is None
    assert all_vacant([slot], time.monotonic())


def test_a_bug_in_one_place_is_logged_and_frees_it(caplog: pytest.LogCaptureFixture) -> None:
    slot, free = Slot(), threading.Event()

    def crash() -> None:
        raise AssertionError("a bug")

    slot.begin(JOB, crash, free.set)
    assert free.wait(5)
    assert slot.job is None
    assert "AssertionError: a bug" in caplog.text
