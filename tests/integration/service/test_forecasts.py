"""What a run would do, from the service's side: what it checks, what it asks a worker, what it knows without one."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.settings import ServiceSettings
from tests.integration.service.conftest import BODY, TALE, TOKEN, Answers, Enlist
from tests.unit.core.forecasts.test_forecast_warnings import KNOWN

MEMORY = {"weights": 4, "gradients": 4, "optimizer": 8, "activations": 10, "averages": 0, "checkpoint": 12, "total": 26}
TOLD: dict[str, Any] = {
    "method": "lm",
    "num_train_tokens": 990,
    "num_val_tokens": 110,
    "num_examples": None,
    "tokens_per_step": 128,
    "steps_per_epoch": 7.73,
    "training_steps": 20,
    "num_epochs": 2.59,
    "num_parameters": 1000,
    "num_trainable": 1000,
    "memory_bytes": MEMORY,
    "memory_at_hand_bytes": 1 << 34,
    "device": "cpu",
    "is_estimate": False,
    "skipped_rows": [{"source": "tale.md", "num": 0, "place": "piece", "first": []}],
    "said": ["said by the data"],
    "known": asdict(replace(KNOWN, num_val_tokens=110)),
}
BATCH = {
    "method": "lm",
    "num_rows": 1,
    "row_length": 8,
    "num_tokens": 8,
    "num_learnt": 8,
    "num_padding": 0,
    "is_estimate": False,
    "rows": [{"pieces": [{"text": "O", "learnt": False, "example": 0}], "padding": 0, "answer": None, "is_cut": False}],
    "warnings": [],
}


def test_a_worker_is_asked_and_what_it_knows_is_thought_over(client: TestClient, worker: Answers) -> None:
    asked = worker(200, TOLD)
    answer = client.post("/jobs/preflight", json=BODY)
    found = answer.json()
    assert answer.status_code == 200, answer.text
    assert found["memory_bytes"] == MEMORY
    assert {name: found[name] for name in TOLD.keys() - {"said", "known"}} == {
        name: value for name, value in TOLD.items() if name not in {"said", "known"}
    }
    assert found["warnings"][0] == "said by the data"
    assert any("110 tokens, less than one batch" in said for said in found["warnings"][1:])
    [request] = asked
    assert (request.url.path, request.headers["authorization"]) == ("/preflight", f"Bearer {TOKEN}")
    told = json.loads(request.content)
    assert (told["config"]["source"], told["config"]["training_steps"]) == ("tale.md", 20)
    assert (told["num_characters"], told["time"]) == ({"tale.md": len(TALE)}, False)
    assert client.get("/jobs").json()["data"] == []


def test_time_is_asked_for_by_name(client: TestClient, worker: Answers) -> None:
    asked = worker(200, {**TOLD, "seconds_per_step": 0.5, "seconds": 10.0})
    found = client.post("/jobs/preflight?time=true", json=BODY).json()
    assert (found["seconds_per_step"], found["seconds"]) == (0.5, 10.0)
    assert json.loads(asked[0].content)["time"] is True


def test_without_a_worker_what_is_known_is_told(client: TestClient, settings: ServiceSettings) -> None:
    rows = [json.dumps({"prompt": "q", "completion": "a"}) for _ in range(20)]
    (settings.sources / "rows.jsonl").write_text("\n".join([*rows, "no json"]))
    answer = client.post("/jobs/preflight", json={**BODY, "source": "rows.jsonl"})
    found = answer.json()
    assert (answer.status_code, found["method"]) == (200, "sft")
    assert (found["tokens_per_step"], found["training_steps"]) == (4 * 32, 20)
    for name in ("num_train_tokens", "steps_per_epoch", "num_epochs", "memory_bytes", "num_parameters", "seconds"):
        assert found[name] is None
    [skipped] = found["skipped_rows"]
    assert (skipped["source"], skipped["num"], skipped["place"]) == ("rows.jsonl", 1, "line")
    assert skipped["first"][0]["number"] == 21
    assert "no worker answers now" in found["warnings"][0]
    assert any("only 2 examples are kept back" in said for said in found["warnings"])
    found = client.post("/jobs/preflight", json={**BODY, "source": "rows.jsonl", "num_epochs": 3}).json()
    assert found["training_steps"] is None or found["training_steps"] == 20


def test_a_worker_whose_gpus_all_train_times_nothing_and_says_when_to_ask_again(
    client: TestClient, worker: Answers
) -> None:
    worker(503, {"code": "device_busy", "message": "each GPU of the worker trains a job now"})
    answer = client.post("/jobs/preflight?time=true", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "device_busy")
    assert answer.json()["detail"] == "each GPU of the worker trains a job now"
    assert int(answer.headers["retry-after"]) > 0


def test_a_worker_that_does_not_answer_is_none(client: TestClient, enlist: Enlist) -> None:
    enlist("w1", "http://127.0.0.1:1")
    found = client.post("/jobs/preflight", json=BODY)
    assert (found.status_code, found.json()["num_train_tokens"]) == (200, None)


@pytest.mark.parametrize(
    "given",
    [
        {"source": "gone.md"},
        {"source": "../tale.md"},
        {"source": "tale.md", "block_size": 100_000},
        {"source": "tale.md", "block_size": "many"},
        {"source": "tale.md", "no_such": 1},
        {"source": "tale.md", "model_type": "gpt2", "base_model": "/etc"},
        {"source": "tale.md", "method": "sft"},
        {"source": "tale.md", "columns": {"chosen": "a", "text": "b"}},
        {"source": "tale.md", "metadata": {"x": "\u0000"}},
    ],
)
def test_what_a_submit_refuses_is_refused_alike(client: TestClient, worker: Answers, given: dict[str, Any]) -> None:
    asked = worker(200, TOLD)
    refused, submitted = client.post("/jobs/preflight", json=given), client.post("/jobs", json=given)
    assert (refused.status_code, submitted.status_code) == (422, 422)
    assert {**refused.json(), "request_id": ""} == {**submitted.json(), "request_id": ""}
    assert asked == []


def test_settings_have_a_size(client: TestClient) -> None:
    answer = client.post("/jobs/preflight", json={**BODY, "sample_prompts": ["x" * 4000] * 16 + ["x"] * 9000})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("status", "code", "seen"),
    [
        (422, "source_too_short", (422, "source_too_short")),
        (409, "model_unavailable", (409, "model_unavailable")),
        (500, "boom", (502, "generation_failed")),
    ],
)
def test_what_a_worker_refuses_is_told(
    client: TestClient, worker: Answers, status: int, code: str, seen: tuple[int, str]
) -> None:
    worker(status, {"code": code, "message": "why it is so"})
    for answer in (client.post("/jobs/preflight", json=BODY), client.get("/sources/tale.md/preview?test_mode=1")):
        assert (answer.status_code, answer.json()["code"]) == seen


def test_rows_of_a_large_source_are_counted_where_all_of_it_was_read(client: TestClient, worker: Answers) -> None:
    worker(
        200,
        {**TOLD, "is_estimate": True, "skipped_rows": [{"source": "tale.md", "num": 9, "place": "piece", "first": []}]},
    )
    found = client.post("/jobs/preflight", json=BODY).json()
    assert (found["is_estimate"], found["skipped_rows"][0]["num"]) == (True, 0)


def test_the_first_batch_is_a_workers_to_show(client: TestClient, worker: Answers, settings: ServiceSettings) -> None:
    asked = worker(200, BATCH)
    (settings.sources / "deep").mkdir()
    (settings.sources / "deep" / "q.csv").write_text("ask,say\n" + "a,b\n" * 20)
    options = {
        "batch_size": 3,
        "block_size": 8,
        "packing": "false",
        "columns": '{"prompt": "ask", "completion": "say"}',
    }
    for name in ("deep/q.csv", "deep%2Fq.csv"):
        answer = client.get(f"/sources/{name}/preview", params=options)
        assert (answer.status_code, answer.json()) == (200, BATCH)
    assert asked[0].url.path == "/preview"
    config = json.loads(asked[0].content)["config"]
    assert (config["source"], config["batch_size"], config["block_size"]) == ("deep/q.csv", 3, 8)
    assert (config["packing"], config["columns"]) == (False, {"prompt": "ask", "completion": "say"})


def test_a_source_is_still_found_under_its_own_name(client: TestClient) -> None:
    assert client.get("/sources/tale.md").json()["name"] == "tale.md"


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/sources/gone.md/preview", "source"),
        ("/sources/..%2Ftale.md/preview", "source"),
        ("/sources/tale.md/preview?block_size=0", "block_size"),
        ("/sources/tale.md/preview?method=magic", "method"),
        ("/sources/tale.md/preview?columns=[1", "columns"),
        ("/sources/tale.md/preview?model_type=causal_lm", "base_model"),
        ("/sources/tale.md/preview?model_type=gpt2&base_model=/etc", "base_model"),
        ("/sources/tale.md/preview?batch_size=many", "batch_size"),
    ],
)
def test_a_preview_is_checked_like_a_run(client: TestClient, worker: Answers, path: str, field: str) -> None:
    asked = worker(200, BATCH)
    answer = client.get(path)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field)
    assert asked == []


def test_without_a_worker_there_is_no_preview(client: TestClient) -> None:
    answer = client.get("/sources/tale.md/preview")
    assert (answer.status_code, answer.json()["code"]) == (503, "worker_unavailable")
