from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import DeviceBusy
from worker import gpus
from worker.gpus import Gpu, GpuLock, find_gpus, free_gpu

LISTED = "0, GPU-aaaa-1, NVIDIA H100, 81559 MiB\n1, GPU-bbbb-2, NVIDIA L4, 23034 MiB\n"
FIRST, SECOND = Gpu(0, "GPU-aaaa-1", "NVIDIA H100", "81559 MiB"), Gpu(1, "GPU-bbbb-2", "NVIDIA L4", "23034 MiB")


@pytest.fixture(autouse=True)
def _own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel shows of its devices; nothing, unless a test adds something."""
    monkeypatch.setattr(gpus, "DEVICES", tmp_path / "dev")
    (tmp_path / "dev").mkdir()
    return tmp_path / "dev"


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The program that lists GPUs; a test writes it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder / "nvidia-smi"


def write(program: Path, script: str) -> None:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_the_gpus_are_those_that_the_driver_lists(driver: Path) -> None:
    write(driver, f"printf '{LISTED}'")
    assert find_gpus({}) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        ("", []),
        (" ", []),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        ("GPU-bbbb", [SECOND]),
        ("GPU-", []),
        ("0,7,1", [FIRST]),
        ("-1", []),
        ("MIG-cccc", []),
    ],
)
def test_only_those_that_the_environment_leaves_are_used(driver: Path, visible: str, found: list[Gpu]) -> None:
    write(driver, f"printf '{LISTED}'")
    assert find_gpus({"CUDA_VISIBLE_DEVICES": visible}) == found


@pytest.mark.parametrize("script", ["exit 9", "sleep 20", "echo 'No devices were found'", "printf '\\xff\\n'"])
def test_a_driver_that_is_broken_lists_none(driver: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "ASK_SECONDS", 0.3)
    write(driver, f"exec {script}")
    assert find_gpus({}) == []


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert find_gpus({}) == []


def test_gpus_that_nothing_lists_are_hidden_and_that_is_said(
    devices: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "")
    (devices / "nvidiactl").touch()
    assert find_gpus({}) == []
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "0"}) is None
    (devices / "nvidia0").touch()
    assert find_gpus({}) is None
    assert find_gpus({"CUDA_VISIBLE_DEVICES": ""}) == [], "they are hidden already"
    assert caplog.text.count("GPUs are hidden from all jobs") == 2


def test_one_at_a_time_has_a_gpu() -> None:
    mine, other, elsewhere = GpuLock("GPU-a"), GpuLock("GPU-a"), GpuLock("GPU-b")
    assert (mine.take(), other.take(), elsewhere.take()) == (True, False, True)
    mine.give_back()
    assert other.take()
    other.give_back()
    elsewhere.give_back()


def test_a_process_that_dies_gives_its_gpu_back(tmp_path: Path) -> None:
    program = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}; from worker.gpus import GpuLock; import sys\n"
    program += "print(GpuLock('GPU-a').take(), flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    with holder:
        assert holder.stdout
        assert holder.stdout.readline() == "True\n"
        lock = GpuLock("GPU-a")
        assert not lock.take()
        holder.kill()
        holder.wait()
    assert lock.take()
    lock.give_back()


def test_any_user_may_lock_a_gpu_and_the_file_stays(tmp_path: Path) -> None:
    before = os.umask(0o077)
    lock = GpuLock("GPU/../a b")
    assert lock.take()
    lock.give_back()
    os.umask(before)
    (path,) = tmp_path.glob("*.lock")
    assert path.name == "ratchet-gpu-GPU____a_b.lock"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    (tmp_path / "ratchet-gpu-GPU-a.lock").symlink_to("precious")
    with pytest.raises(OSError, match="symbolic links"):
        GpuLock("GPU-a").take()


def test_something_is_tried_on_a_gpu_that_nobody_has_and_is_had_alone_meanwhile(driver: Path) -> None:
    write(driver, f"printf '{LISTED}'")
    job, other = GpuLock(SECOND.uuid), GpuLock(FIRST.uuid)
    assert job.take()
    with free_gpu("auto", {}) as visible:
        assert visible == FIRST.uuid
        assert not other.take(), "no job begins on it"
    assert other.take(), "and then it is anybody's"
    job.give_back(), other.give_back()


def test_where_each_gpu_trains_a_job_nothing_is_tried(driver: Path) -> None:
    write(driver, f"printf '{LISTED}'")
    jobs = [GpuLock(gpu.uuid) for gpu in (FIRST, SECOND)]
    assert all(job.take() for job in jobs)
    with pytest.raises(DeviceBusy, match="trains a job now, so no step can be timed"), free_gpu("cuda", {}):
        pass
    with free_gpu("cpu", {}) as visible:
        assert visible == "", "a processor has no lock"
    for job in jobs:
        job.give_back()


def test_what_is_tried_gives_its_gpu_back_when_it_fails(driver: Path) -> None:
    write(driver, f"printf '{LISTED}'")
    with pytest.raises(KeyError), free_gpu("auto", {}):
        raise KeyError
    with free_gpu("auto", {}) as visible:
        assert visible == SECOND.uuid, "jobs take the first"


def test_a_gpu_whose_lock_cannot_be_opened_is_not_free(driver: Path, tmp_path: Path) -> None:
    write(driver, f"printf '{LISTED}'")
    (tmp_path / f"ratchet-gpu-{FIRST.uuid}.lock").symlink_to(tmp_path / "elsewhere")
    with free_gpu("auto", {}) as visible:
        assert visible == SECOND.uuid


def test_what_jobs_do_not_see_is_not_tried_either(driver: Path, devices: Path) -> None:
    with free_gpu("auto", {"CUDA_VISIBLE_DEVICES": ""}) as visible:
        assert visible is None, "there is none"
    write(driver, "exit 9")
    (devices / "nvidia0").touch()
    with free_gpu("auto", {}) as visible:
        assert visible == "", "there is one that nobody can lock"
