"""Two workers on a machine with one GPU, which a program in place of the driver's lists."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from jobs import queue, workers
from jobs.tables import State
from tests.integration.worker.conftest import FOREVER, Bench

UUID = "GPU-5f3c1d2e-0000-4444-8888-123456789abc"


@pytest.fixture(autouse=True)
def _one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '0, {UUID}, NVIDIA Imaginary, 80 GiB'\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_serves_one_worker_and_the_next_when_that_one_is_gone(bench: Bench) -> None:
    first_job = bench.submit(**FOREVER)
    first = bench.worker()
    bench.until_step(first_job, 1)
    assert bench.job(first_job).device == UUID
    with bench.db.read() as session:
        (row,) = workers.list_workers(session)
    assert (row.capacity, row.devices[1:]) == (1, ["cuda: NVIDIA Imaginary"])
    bench.submit("waits")
    log = bench.folder / "second.log"
    second = bench.worker(log=log)
    bench.when(lambda: "no job is taken for GPU" in log.read_text())
    time.sleep(1)
    assert log.read_text().count("no job is taken for GPU") == 1
    assert bench.children_of(second) == []
    first.kill()
    first.wait()
    goes_on = bench.until(first_job, State.RETRY_WAIT, State.QUEUED, State.STARTING)
    assert goes_on.state is State.STARTING or goes_on.device is None
    bench.when(lambda: bench.children_of(second))
    running = bench.when(lambda: (job := bench.job(first_job)).state is State.RUNNING and job)
    assert (running.device, running.attempt) == (UUID, 2)
    bench.ask(queue.request_cancel, first_job)
    assert bench.until_final(first_job).device is None
