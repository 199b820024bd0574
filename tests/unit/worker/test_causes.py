from __future__ import annotations

import signal
from pathlib import Path

import pytest

from worker import causes
from worker.causes import OutOfMemoryKills, cause_of


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The kernel's counters of a control group that we are in."""
    (tmp_path / "cgroup").write_text("4:memory:/old\n0::/user.slice/worker\n")
    group = tmp_path / "fs" / "user.slice" / "worker"
    group.mkdir(parents=True)
    monkeypatch.setattr(causes, "OWN_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(causes, "CGROUPS", tmp_path / "fs")
    return group / "memory.events"


def test_a_kill_for_want_of_memory_is_told_from_any_other(events: Path) -> None:
    events.write_text("low 0\noom 3\noom_kill 3\noom_group_kill 0\n")
    kills = OutOfMemoryKills()
    assert kills.any() is False
    assert (cause_of(-9, kills.any()).code, "not for want of memory" in cause_of(-9, False).message) == ("killed", True)
    events.write_text("low 0\noom 4\noom_kill 4\noom_group_kill 0\n")
    assert kills.any() is True
    cause = cause_of(-9, kills.any())
    assert (cause.code, "smaller batch_size" in cause.message) == ("out_of_memory_host", True)


@pytest.mark.parametrize("counted", [None, "", "oom_kill x\n"])
def test_where_the_kernel_does_not_count_the_likely_cause_is_told_as_such(events: Path, counted: str | None) -> None:
    if counted is not None:
        events.write_text(counted)
    assert OutOfMemoryKills().any() is None
    assert "most likely" in cause_of(-9, None).message


def test_memory_is_not_blamed_for_an_end_of_another_kind() -> None:
    assert (cause_of(-11, True).code, cause_of(3, True).code) == ("signal", "exited")


def test_a_signal_without_a_name_is_told_by_its_number() -> None:
    cause = cause_of(-(signal.SIGRTMIN + 1), None)
    assert (cause.code, cause.message) == ("signal", "The training process was ended by signal 35.")
