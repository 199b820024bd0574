"""Warp's workflows, as Warp fills them in, run by a shell against a live service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.conftest import LEAN, Ratchet
from tests.conftest import PROJECT

FOLDER = PROJECT / ".warp" / "workflows"
ALLOWED = {"name", "command", "tags", "description", "arguments", "source_url", "author", "author_url", "shells"}

DOCUMENTS = [
    (path.stem, document)
    for path in sorted(FOLDER.glob("**/*.yaml"))
    for document in yaml.safe_load_all(path.read_text())
]


@pytest.fixture(scope="module")
def ratchet(tmp_path_factory: pytest.TempPathFactory, started: Callable[..., Any], sources: Path) -> Iterator[Ratchet]:
    with started(tmp_path_factory.mktemp("up"), "--sources", str(sources), RATCHET_WARM_CHILD="false") as up:
        yield up


def filled(document: dict[str, Any], **given: str) -> str:
    """The command with each argument replaced by its exact `{{name}}`, as Warp does it."""
    command = document["command"]
    for argument in document.get("arguments", []):
        value = given.get(argument["name"], argument.get("default_value", argument["name"]))
        command = command.replace(f"{{{{{argument['name']}}}}}", value)
    return str(command)


def run(command: str, cwd: Path = PROJECT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "HOME": str(cwd), "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=100,
    )


def workflow(stem: str, number: int = 0) -> dict[str, Any]:
    return [document for name, document in DOCUMENTS if name == stem][number]


@pytest.mark.parametrize(("stem", "document"), DOCUMENTS, ids=[document["name"] for _, document in DOCUMENTS])
def test_a_workflow_is_one_that_warp_will_not_skip(stem: str, document: dict[str, Any]) -> None:
    assert set(document) <= ALLOWED
    assert document["name"]
    assert document["command"]
    declared = {argument["name"] for argument in document["arguments"]}
    assert declared == set(re.findall(r"\{\{(\w+)\}\}", document["command"])), "declared is what is used"
    assert "{{{" not in document["command"], "Warp reads three braces as an escape"
    assert all(isinstance(argument.get("default_value", ""), str) for argument in document["arguments"])
    if "curl" in document["command"]:
        assert "--fail-with-body" in document["command"]
        assert "$RATCHET_API_KEY" in document["command"].replace("{", "").replace(":-}", "")


def test_every_everyday_command_of_the_first_day_has_a_workflow() -> None:
    assert {stem for stem, _ in DOCUMENTS} == {
        "start",
        "fresh_run",
        "resume_training",
        "resume_training_script",
        "watch_live",
        "generate",
    }


def test_fresh_run_watch_resume_and_generate_work_one_after_the_other(ratchet: Ratchet) -> None:
    here = {"url": ratchet.url}
    fresh = run(filled(workflow("fresh_run"), training_steps="20", **here))
    assert fresh.returncode == 0, fresh.stderr
    watched = run(filled(workflow("watch_live"), **here))
    assert watched.returncode == 0, watched.stderr
    assert "✅ Training finished at step 20" in watched.stdout
    resumed = run(filled(workflow("resume_training"), resume_steps="5", **here))
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout)["start_step"] == 20
    ratchet.follow(json.loads(resumed.stdout)["id"])
    said = run(filled(workflow("generate"), max_new_tokens="5", **here))
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["choices"][0]["text"]


def test_a_refusal_is_shown_and_fails_the_command(ratchet: Ratchet) -> None:
    refused = run(filled(workflow("fresh_run"), url=ratchet.url, source="nowhere.md"))
    assert refused.returncode != 0
    assert "'nowhere.md' does not exist" in refused.stdout


def test_both_script_forms_resume_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python3").symlink_to(sys.executable)
    for name in ("training.py", "training_resume.py", "core", "sources"):
        (tmp_path / name).symlink_to(PROJECT / name)
    tiny = {"TEST_MODE": "1", "TRAINING_STEPS": "4", "MAX_NEW_TOKENS": "0"}
    # A link to an interpreter in a virtual environment does not find that environment's packages.
    tiny["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    first = run(".venv/bin/python3 training.py", tmp_path, **tiny)
    assert first.returncode == 0, first.stderr
    (checkpoint,) = (tmp_path / "checkpoints").glob("checkpoint_*")
    for number in (0, 1):
        command = filled(workflow("resume_training_script", number), checkpoint_path=f"checkpoints/{checkpoint.name}")
        done = run(command, tmp_path, PYTHONPATH=tiny["PYTHONPATH"], MAX_NEW_TOKENS="0")
        assert done.returncode == 0, done.stderr
        assert "steps 4 → 8" in done.stdout


def test_start_runs_the_service_in_the_terminal(tmp_path: Path) -> None:
    command = filled(workflow("start"), port="0")
    # `exec`, so that the signal reaches it and not the shell around it.
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command.replace('.venv/bin/ratchet', f'{sys.executable} -m client')}"],
        cwd=PROJECT,
        env={**os.environ, **LEAN, "RATCHET_DATA": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout
    with process.stdout:
        assert process.stdout.readline().startswith("Ratchet is ready at http://127.0.0.1:")
        process.terminate()
        process.stdout.read()
    assert process.wait(timeout=40) in (0, 143)
