from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from client import cli
from client.command_name import command_name
from core.config import TrainingConfig
from tests.conftest import PROJECT
from tests.unit.client.conftest import JOB, FakeService, Ratchet, sse

SUCCEEDED = {**JOB, "state": "succeeded", "step": 2, "train_loss": 1.5, "val_loss": 1.75, "checkpoint": "ckpt_end"}

STORY = (
    (1, "state", {"state": "queued", "attempt": 0}),
    (2, "log", {"line": "🚀 Training \x1b[2Jtale"}),
    (3, "started", {"start_step": 0, "end_step": 2, "num_parameters": 10}),
    (4, "step", {"step": 1, "loss": 2.5, "lr": 0.1, "grad_norm": 1.0, "tokens_per_second": 128.0}),
    (5, "eval", {"step": 2, "train_loss": 1.5, "val_loss": 1.75}),
    (6, "checkpoint", {"step": 2, "id": "ckpt_end", "name": "checkpoint_end"}),
    (7, "done", {"state": "succeeded"}),
)


def options_of(command: str, ratchet: Ratchet) -> set[str]:
    code, out, _ = ratchet(command, "--help")
    assert code == 0
    return set(re.findall(r"--[a-z][a-z0-9-]+", out))


def test_every_hyperparameter_is_an_option_of_train_and_resume(ratchet: Ratchet) -> None:
    flags = {f"--{name.replace('_', '-')}" for name in TrainingConfig.model_fields}
    # The text is train's argument; a warm start may choose another one.
    assert flags - options_of("train", ratchet) == {"--source"}
    assert flags <= options_of("resume", ratchet)


def test_only_what_was_said_is_sent_so_that_the_service_chooses_the_rest(
    service: FakeService, ratchet: Ratchet
) -> None:
    service.lay("POST", "/jobs", JOB, status=201)
    code, out, _ = ratchet(
        "train", "tale.md", "--training-steps", "2", "--learning-rate", "3e-3", "--no-use-lr-warmup", "--name", "tale"
    )
    assert code == 0
    assert service.last("/jobs").body == {
        "source": "tale.md",
        "training_steps": 2,
        "learning_rate": 0.003,
        "use_lr_warmup": False,
        "name": "tale",
    }
    assert "ratchet logs -f job_tale" in out


def test_a_resume_says_what_differs_from_before(service: FakeService, ratchet: Ratchet) -> None:
    diff = [{"field": "training_steps", "before": 2, "after": 60}]
    service.lay("POST", "/jobs/ckpt_end/resume", {**JOB, "diff": diff}, status=201)
    code, out, _ = ratchet("resume", "ckpt_end", "--training-steps", "60", "--mode", "exact")
    assert code == 0
    assert service.last("/jobs/ckpt_end/resume").body == {"training_steps": 60, "mode": "exact"}
    assert "training_steps: 2 → 60" in out


def test_following_into_a_pipe_prints_the_runs_own_lines(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("POST", "/jobs", JOB, status=201)
    service.lay("GET", "/jobs/job_tale/events", sse(*STORY))
    service.lay("GET", "/jobs/job_tale", SUCCEEDED)
    code, out, err = ratchet("train", "-f")
    assert code == 0
    assert out.splitlines() == [
        "🚀 Training \N{REPLACEMENT CHARACTER}[2Jtale",
        "✅ Job job_tale succeeded at step 2: train loss 1.5000, val loss 1.7500, checkpoint ckpt_end",
    ]
    assert "job_tale" in err


def test_following_a_job_that_fails_ends_with_its_reason_and_exit_code_1(
    service: FakeService, ratchet: Ratchet
) -> None:
    failed = {**JOB, "state": "failed", "error": {"code": "non_finite", "message": "The loss is NaN."}}
    service.lay("POST", "/jobs", JOB, status=201)
    service.lay("GET", "/jobs/job_tale/events", sse((1, "done", {"state": "failed"})))
    service.lay("GET", "/jobs/job_tale", failed)
    code, _, err = ratchet("train", "-f")
    assert code == 1
    assert err.splitlines()[-1] == "Job job_tale failed: The loss is NaN."


def test_following_ends_when_the_job_is_paused(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/jobs/job_tale/events", sse((1, "state", {"state": "paused", "attempt": 1})))
    service.lay("GET", "/jobs/job_tale", {**JOB, "state": "paused", "step": 1})
    code, out, _ = ratchet("logs", "-f", "job_tale")
    assert code == 0
    assert "ratchet resume job_tale" in out


def test_ctrl_c_while_following_leaves_the_job_alone_and_says_how_to_come_back(
    service: FakeService, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    service.lay("POST", "/jobs", JOB, status=201)
    monkeypatch.setattr("client.api.Ratchet.events", interrupted)
    code, _, err = ratchet("train", "-f")
    assert code == 130
    assert "ratchet logs -f job_tale" in err
    assert [asked.path for asked in service.asked] == ["/jobs"]


def test_logs_without_follow_end_where_the_log_does(service: FakeService, ratchet: Ratchet) -> None:
    items = [{"seq": seq, "kind": kind, "data": data} for seq, kind, data in STORY[:4]]
    service.lay("GET", "/jobs/job_tale/events", {"data": items, "has_more": False})
    assert ratchet("logs", "job_tale")[1] == "🚀 Training \N{REPLACEMENT CHARACTER}[2Jtale\n"
    events = [json.loads(line) for line in ratchet("logs", "job_tale", "--json")[1].splitlines()]
    assert [event["kind"] for event in events] == ["state", "log", "started", "step"]


@pytest.mark.parametrize("command", ["jobs", "checkpoints", "sources"])
def test_a_list_is_json_for_a_program_and_says_so_when_it_is_empty_for_a_person(
    service: FakeService, ratchet: Ratchet, command: str
) -> None:
    service.lay("GET", f"/{command}", {"data": [], "has_more": False})
    assert json.loads(ratchet(command, "--json")[1]) == []
    assert "There are no" in ratchet(command)[1]


def test_a_name_cannot_speak_to_the_terminal_or_be_taken_for_markup(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/jobs", {"data": [{**JOB, "name": "[red]\x1b[31mtale"}], "has_more": False})
    out = ratchet("jobs")[1]
    assert "\x1b" not in out
    assert "[red]\N{REPLACEMENT CHARACTER}[31mtale" in out


def test_a_job_stands_for_its_latest_checkpoint(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/jobs/job_tale", SUCCEEDED)
    service.lay("POST", "/generate", 'event: token\ndata: {"index": 0, "text": "Paris"}\n\nevent: done\ndata: {}\n\n')
    code, out, _ = ratchet("generate", "job_tale", "Capital?", "--temperature", "0", "--stop", "\n")
    assert (code, out) == (0, "Paris\n")
    body = service.last("/generate").body
    assert body == {"checkpoint": "ckpt_end", "prompt": "Capital?", "temperature": 0, "stop": ["\n"], "stream": True}


def test_a_job_without_a_checkpoint_cannot_answer(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/jobs/job_tale", JOB)
    code, _, err = ratchet("generate", "job_tale", "Capital?")
    assert (code, err) == (1, "Job job_tale has no checkpoint yet.\n")


def test_a_refusal_is_one_sentence_and_exit_code_1(service: FakeService, ratchet: Ratchet) -> None:
    errors = [{"field": "seed", "message": "must not be odd"}, {"field": "device", "message": "no such device"}]
    service.lay("POST", "/jobs", {"code": "x", "detail": "seed: must not be odd.", "errors": errors}, status=422)
    code, out, err = ratchet("train", "--seed", "1")
    assert (code, out) == (1, "")
    assert err.splitlines() == ["seed: must not be odd.", "  device: no such device"]


@pytest.mark.parametrize("arguments", [["train", "--training-steps", "many"], ["train", "--colour", "red"], ["fly"]])
def test_what_is_no_command_is_exit_code_2(ratchet: Ratchet, arguments: list[str]) -> None:
    assert ratchet(*arguments)[0] == 2


def test_a_service_that_is_not_there_is_exit_code_3_and_says_how_to_start_it(
    ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RATCHET_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        code, _, err = ratchet("jobs")
    assert code == 3
    assert "ratchet up" in err
    assert "Traceback" not in err


def test_status_says_who_works_and_on_what(service: FakeService, ratchet: Ratchet) -> None:
    worker = {
        "id": "worker_1",
        "job_id": "job_tale",
        "devices": ["cpu"],
        "memory_bytes": 2**30,
        "alive": True,
        "draining": False,
        "seen_at": "2025-01-01T00:00:00.000Z",
    }
    service.lay("GET", "/readyz", {"status": "ready"})
    service.lay("GET", "/workers", {"data": [worker]})
    service.lay("GET", "/jobs", {"data": [JOB], "has_more": False})
    code, out, _ = ratchet("status")
    assert code == 0
    assert "is ready" in out
    assert re.search(r"worker_1 +busy +job_tale +cpu +1\.0 GiB", out)


def test_a_service_that_is_not_ready_says_why(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/readyz", {"code": "not_ready", "detail": "The ledger is locked."}, status=503)
    service.lay("GET", "/workers", {"data": []})
    service.lay("GET", "/jobs", {"data": []})
    code, out, _ = ratchet("status")
    assert code == 0
    assert "not ready: The ledger is locked." in out
    assert "ratchet work" in out


def test_the_places_of_serve_become_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[dict[str, str]] = []

    def become(_path: str, _command: list[str], environment: dict[str, str]) -> None:
        became.append(environment)
        raise SystemExit(0)

    monkeypatch.setattr("client.commands.processes.os.execve", become)
    monkeypatch.setenv("RATCHET_SOURCES", "/from/outside")
    with pytest.raises(SystemExit):
        cli.main(["serve", "--port", "8123", "--data", "somewhere"])
    told = {name: value for name, value in became[0].items() if name.startswith("RATCHET_")}
    assert told == {"RATCHET_PORT": "8123", "RATCHET_DATA": "somewhere", "RATCHET_SOURCES": "/from/outside"}


def test_a_key_that_cannot_be_sent_is_exit_code_2_and_not_shown(
    ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_API_KEY", "secret\nX-Other: 1")
    code, out, err = ratchet("status")
    assert (code, out) == (2, "")
    assert err.startswith("RATCHET_API_KEY: ")
    assert len(err.splitlines()) == 1
    assert "secret" not in err


def test_the_version_is_the_installed_one(ratchet: Ratchet) -> None:
    assert ratchet("--version") == (0, f"ratchet {version('ratchet')}\n", "")


@pytest.mark.parametrize("on_path", [True, False])
def test_a_hint_calls_the_command_as_a_shell_would_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_path: bool
) -> None:
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "ratchet"
    command.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(command.parent) if on_path else "/nowhere")
    monkeypatch.setattr(sys, "argv", ["bin/ratchet", "jobs"])
    assert command_name() == ("ratchet" if on_path else "bin/ratchet")


def test_a_hint_of_a_checkout_that_is_not_installed_names_the_interpreter() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        done = subprocess.run(
            [sys.executable, "-m", "client", "jobs"],
            cwd=PROJECT,
            env={**os.environ, "RATCHET_URL": f"127.0.0.1:{nobody.getsockname()[1]}"},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 3
    assert done.stderr.endswith(f"Start the service with: {sys.executable} -m client up\n")
