from __future__ import annotations

import json
from typing import Any

import pytest

from client.cli import main
from tests.unit.client.conftest import FakeService

POINT = {"step": 7, "loss": 1.23456, "lr": 0.0005, "grad_norm": 0.987654, "tokens_per_second": 1234.5}

CURVE: dict[str, Any] = {
    "points": [POINT],
    "evaluations": [],
    "segments": [],
    "missing": None,
    "downsampled": False,
}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        main(["metrics", "job_tale", *arguments])
    assert left.value.code == 0
    return capsys.readouterr().out


def test_a_person_sees_a_few_steps_as_a_table(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET", "/jobs/job_tale/metrics", CURVE)
    out = run(capsys, "--lineage")
    assert all(word in out for word in ("step", "loss", "7", "1.2346", "0.0005", "0.988", "1,234"))
    assert service.asked[-1].path == "/jobs/job_tale/metrics?points=20&lineage=true"


def test_a_job_without_steps_is_said_to_have_none(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET", "/jobs/job_tale/metrics", {**CURVE, "points": []})
    assert run(capsys) == "Job job_tale has made no step yet.\n"


def test_a_program_gets_the_services_own_json(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET", "/jobs/job_tale/metrics", CURVE)
    assert json.loads(run(capsys, "--json", "--points", "50")) == CURVE
    assert service.asked[-1].path == "/jobs/job_tale/metrics?points=50&lineage=false"


def test_a_spreadsheet_gets_the_services_own_csv(service: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    service.lay("GET", "/jobs/job_tale/metrics", "step,loss\n1,2.0\n")
    assert run(capsys, "--csv") == "step,loss\n1,2.0\n"
    assert service.asked[-1].path == "/jobs/job_tale/metrics?lineage=false&format=csv"
