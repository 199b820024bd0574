from __future__ import annotations

import io
import json
import socket
import sys
from pathlib import Path

import pytest
from rich.console import Console

from client import demo
from client.api import Ratchet
from core.config import TrainingConfig
from tests.conftest import PROJECT
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
    monkeypatch.setenv("RATCHET_DEMO_DATA", str(tmp_path))
    monkeypatch.setattr(demo, "UP", (sys.executable, "-c", "import sys; sys.exit('no disk')"))
    assert demo.main() == 1
    said = capsys.readouterr().err
    assert "The service ended with exit code 1 before it was ready." in said
    assert "Traceback" not in said
    assert (tmp_path / "up.log").read_text() == "no disk\n"


@pytest.mark.parametrize("in_file", [True, False])
def test_the_settings_of_another_service_do_not_reach_the_tours_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    foreign = {
        "RATCHET_API_KEY": "secret",
        "RATCHET_HOST": "0.0.0.0",
        "RATCHET_DATABASE_URL": "postgresql://production",
        "RATCHET_MODELS": "/elsewhere",
        "RATCHET_MAX_CONFIG_BYTES": "1",
    }
    if in_file:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in foreign.items()))
    else:
        for name, value in foreign.items():
            monkeypatch.setenv(name, value)
    shown = "from service.settings import ServiceSettings as S; import sys; sys.exit(S().model_dump_json())"
    monkeypatch.setattr(demo, "PROJECT", tmp_path)
    monkeypatch.setattr(demo, "UP", (sys.executable, "-c", shown))
    monkeypatch.setenv("RATCHET_DEMO_DATA", str(tmp_path / "demo"))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    assert demo.main() == 1
    said = (tmp_path / "demo" / "up.log").read_text()
    assert json.loads(said)["api_key"] is None
    assert json.loads(said)["host"] == "127.0.0.1"
    assert not any(value in said for value in ("secret", "production", "elsewhere"))
    assert json.loads(said)["max_config_bytes"] > 1


def test_a_port_that_someone_has_is_left_to_them(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as someone:
        taken = someone.getsockname()[1]
        monkeypatch.setattr(demo, "USUAL_PORT", taken)
        assert demo._free_port() != taken
