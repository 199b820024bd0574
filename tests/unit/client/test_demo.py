from __future__ import annotations

import io
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console

from client import demo
from client.api import Ratchet
from core.config import TrainingConfig
from tests.unit.client.conftest import JOB, FakeService, sse

CHECKPOINT = {"id": "ckpt_end", "name": "checkpoint_end", "step": 600}


@pytest.fixture
def finished(service: FakeService) -> FakeService:
    """A service whose jobs are done as soon as they are asked for."""
    done = {**JOB, "state": "succeeded", "step": 600, "train_loss": 0.5, "val_loss": 0.6, "checkpoint": "ckpt_end"}
    service.lay("POST", "/jobs", JOB, status=201)
    service.lay("GET", "/jobs/job_tale", done)
    service.lay("GET", "/jobs/job_tale/events", sse((1, "done", {"state": "succeeded"})))
    service.lay("GET", "/checkpoints", {"data": [CHECKPOINT], "has_more": False})
    service.lay("POST", "/jobs/ckpt_end/resume", JOB, status=201)
    service.lay("POST", "/generate", {"choices": [{"text": " The capital of France is Paris."}]})
    return service


def test_the_tour_trains_resumes_asks_and_says_what_to_try_next(finished: FakeService) -> None:
    screen = io.StringIO()
    with Ratchet(finished.url) as api:
        demo.tour(api, Console(file=screen, width=100))
    assert finished.last("/jobs").body == {"name": "demo", **demo.DEMO_CONFIG}
    assert finished.last("/jobs/ckpt_end/resume").body["training_steps"] == demo.RESUME_STEPS
    assert finished.last("/generate").body["checkpoint"] == "ckpt_end"
    shown = screen.getvalue()
    assert f"{demo.QUESTION} The capital of France is Paris." in shown
    assert f"curl -N {finished.url}/jobs/job_tale/events" in shown
    assert "/jobs/ckpt_end/resume" in shown
    assert f"{finished.url}/generate" in shown


def test_the_tours_own_settings_make_a_run() -> None:
    assert TrainingConfig(**demo.DEMO_CONFIG).training_steps == demo.DEMO_CONFIG["training_steps"]


def test_a_service_that_cannot_start_is_one_sentence_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "DATA", tmp_path)
    monkeypatch.setattr(demo, "UP", (sys.executable, "-c", "import sys; sys.exit('no disk')"))
    assert demo.main() == 1
    said = capsys.readouterr().err
    assert "The service ended with exit code 1 before it was ready." in said
    assert "Traceback" not in said
    assert (tmp_path / "up.log").read_text() == "no disk\n"


def test_the_settings_of_another_service_do_not_reach_the_tours_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_DATABASE_URL", "postgresql://production")
    monkeypatch.setenv("RATCHET_LEASE_SECONDS", "1")
    monkeypatch.setenv("RATCHET_API_KEY", "secret")
    environment = demo._environment()
    assert environment["RATCHET_DATABASE_URL"] == ""
    assert "RATCHET_LEASE_SECONDS" not in environment
    assert environment["RATCHET_API_KEY"] == "secret"


def test_a_port_that_someone_has_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as someone:
        taken = someone.getsockname()[1]
        monkeypatch.setattr(demo, "USUAL_PORT", taken)
        assert demo._free_port() != taken
