"""The process of a worker that tells what runs would do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.config import TrainingConfig, config_to_dict
from tests.integration.worker.conftest import TEXT, TINY
from worker.gpus import GpuLock
from worker.inference_process import InferenceProcess
from worker.settings import WorkerSettings

CONFIG = {**TINY, "source": "sums.md"}


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    root = tmp_path_factory.mktemp("forecasts")
    (root / "sources").mkdir()
    (root / "sources" / "sums.md").write_text(TEXT)
    process = InferenceProcess(WorkerSettings(data=root, sources=root / "sources", models=root / "models"))
    yield process
    process.close()


@pytest.fixture
def ask(process: InferenceProcess) -> Iterator[Any]:
    headers = {"Authorization": f"Bearer {process.token}"}
    with httpx2.Client(base_url=process.url or "", headers=headers, timeout=60) as client:

        def ask(what: str, *, time: bool = False, **changes: Any) -> httpx2.Response:
            config = config_to_dict(TrainingConfig(**{**CONFIG, **changes}))
            body = {"config": config, "num_characters": {"sums.md": len(TEXT)}, "time": time}
            return client.post(f"/{what}", json=body)

        yield ask


def test_it_finds_the_sources_of_its_worker(ask: Any) -> None:
    found = ask("preflight").json()
    assert found["num_train_tokens"] + found["num_val_tokens"] == len(TEXT)
    assert found["memory_bytes"]["total"] < found["memory_at_hand_bytes"]
    assert ask("preview").json()["method"] == "lm"


def test_a_step_is_timed_where_it_fits(ask: Any) -> None:
    found = ask("preflight", time=True).json()
    assert found["seconds"] == pytest.approx(found["seconds_per_step"] * found["training_steps"])


def test_what_does_not_fit_is_not_tried(ask: Any) -> None:
    found = ask("preflight", time=True, n_embd=16_384, n_head=2, n_layer=200, batch_size=4096).json()
    assert found["memory_bytes"]["total"] > found["memory_at_hand_bytes"]
    assert "seconds" not in found


def test_what_cannot_be_is_refused_in_a_sentence(ask: Any, process: InferenceProcess) -> None:
    answer = ask("preview", block_size=100_000)
    assert (answer.status_code, answer.json()["code"]) == (422, "source_too_short")
    assert ask("preflight", device="cuda:7").json()["code"] == "device_unavailable"
    url = f"{process.url}/preflight"
    assert httpx2.post(url, json={}).status_code == 401
    assert httpx2.post(url, json={}, headers={"Authorization": f"Bearer {process.token}"}).status_code == 422


def test_those_who_ask_at_once_are_answered_alike(ask: Any) -> None:
    with ThreadPoolExecutor(4) as people:
        found = [each.result().json() for each in [people.submit(ask, "preflight") for _ in range(4)]]
    for each in found:
        # What is at hand is another amount at each moment.
        del each["memory_at_hand_bytes"], each["known"]["memory_at_hand_bytes"]
    assert len({json.dumps(each) for each in found}) == 1


def test_no_step_is_timed_beside_a_job_on_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho '0, GPU-1, NVIDIA Imaginary, 80 GiB'\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "sums.md").write_text(TEXT)
    job = GpuLock("GPU-1")
    process = InferenceProcess(WorkerSettings(data=tmp_path, sources=tmp_path / "sources", models=tmp_path / "models"))
    try:
        assert job.take()
        config = config_to_dict(TrainingConfig(**{**CONFIG, "device": "auto"}))
        body = {"config": config, "num_characters": {"sums.md": len(TEXT)}, "time": True}
        headers = {"Authorization": f"Bearer {process.token}"}
        answer = httpx2.post(f"{process.url}/preflight", json=body, headers=headers, timeout=60)
        assert (answer.status_code, answer.json()["code"]) == (503, "device_busy")
        job.give_back()
        answer = httpx2.post(f"{process.url}/preflight", json=body, headers=headers, timeout=60)
        assert answer.json()["seconds_per_step"] > 0
    finally:
        job.give_back()
        process.close()


def test_tokens_are_counted_by_the_process_itself(process: InferenceProcess) -> None:
    source = {"name": "sums.md", "num_characters": len(TEXT), "sha256": ""}
    headers = {"Authorization": f"Bearer {process.token}"}
    asked = {"sources": [source], "seconds": 30, "most_characters": 1 << 20}
    with httpx2.Client(base_url=process.url or "", headers=headers, timeout=60) as client:
        [count] = client.post("/tokens", json=asked).json()["counts"]
        assert count == {"num_tokens": len(TEXT), "is_estimate": False, "error": None}
        answer = client.post("/tokens", json={**asked, "model": "nothing"})
        assert (answer.status_code, answer.json()["code"]) == (422, "config_invalid")
        answer = client.post("/tokens", json={**asked, "checkpoint": "checkpoint_nothing"})
        assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
