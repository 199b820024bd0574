"""The whole path over HTTP, with the real commands on a free port."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import LEAN, Ratchet
from tests.conftest import PROJECT


def events_of(ratchet: Ratchet, job_id: str, after: int = 0) -> list[tuple[int, str, dict[str, Any]]]:
    answer = ratchet.http.get(f"/jobs/{job_id}/events", params={"after": after})
    found = re.findall(r"id: (\d+)\r?\nevent: (\w+)\r?\ndata: (.*)\r?\n", answer.text)
    return [(int(seq), kind, json.loads(data)) for seq, kind, data in found]


@pytest.fixture(scope="module")
def trained(ratchet: Ratchet) -> dict[str, Any]:
    job = ratchet.submit(name="first")
    ratchet.follow(job["id"])
    return dict(ratchet.http.get(f"/jobs/{job['id']}").json())


def test_one_line_says_where_it_is_ready(ratchet: Ratchet) -> None:
    assert re.fullmatch(r"Ratchet is ready at http://127\.0\.0\.1:\d+\n", ratchet.ready_line)
    assert ratchet.http.get("/livez").status_code == ratchet.http.get("/readyz").status_code == 200


def test_a_submitted_job_is_trained_to_its_end(trained: dict[str, Any]) -> None:
    assert (trained["state"], trained["step"], trained["progress"]) == ("succeeded", 40, 1.0)
    assert trained["train_loss"] < 4.3
    assert trained["error"] is None
    assert trained["checkpoint"]


def test_its_events_are_numbered_without_a_gap_and_end_with_done(ratchet: Ratchet, trained: dict[str, Any]) -> None:
    events = events_of(ratchet, trained["id"])
    assert [seq for seq, _, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1:] == ("done", {"state": "succeeded"})
    assert [data["step"] for _, kind, data in events if kind == "step"] == list(range(1, 41))


def test_a_reader_that_comes_back_gets_only_what_it_missed(ratchet: Ratchet, trained: dict[str, Any]) -> None:
    whole = events_of(ratchet, trained["id"])
    assert events_of(ratchet, trained["id"], after=10) == whole[10:]
    last = {"Last-Event-ID": str(whole[-1][0])}
    assert ratchet.http.get(f"/jobs/{trained['id']}/events", headers=last).status_code == 204


def test_the_log_is_the_friendly_lines_of_the_scripts(ratchet: Ratchet, trained: dict[str, Any]) -> None:
    text = ratchet.follow(trained["id"])
    for line in ("🚀 Training from_scratch", "📊 step 20/40", "💾 Checkpoint saved", "✅ Training finished at step 40"):
        assert line in text


def test_a_checkpoint_is_resumed_by_a_new_job_that_knows_its_parent(ratchet: Ratchet, trained: dict[str, Any]) -> None:
    listed = ratchet.http.get("/checkpoints", params={"job": trained["id"]}).json()["data"]
    assert [item["step"] for item in listed] == [40, 20]
    answer = ratchet.http.post(f"/jobs/{listed[1]['name']}/resume", json={"training_steps": 30, "learning_rate": 2e-3})
    assert answer.status_code == 201, answer.text
    assert {item["field"] for item in answer.json()["diff"]} == {"training_steps", "learning_rate"}
    ratchet.follow(answer.json()["id"])
    job = ratchet.http.get(f"/jobs/{answer.json()['id']}").json()
    assert (job["state"], job["start_step"], job["step"], job["parent"]) == ("succeeded", 20, 50, listed[1]["id"])


def test_what_a_checkpoint_cannot_become_is_a_409_with_the_difference(
    ratchet: Ratchet, trained: dict[str, Any]
) -> None:
    answer = ratchet.http.post(f"/jobs/{trained['checkpoint']}/resume", json={"n_layer": 7})
    assert answer.status_code == 409
    assert answer.json()["errors"][0]["field"] == "n_layer"


def test_a_checkpoint_answers_whole_and_streamed_and_the_same_for_the_same_seed(
    ratchet: Ratchet, trained: dict[str, Any]
) -> None:
    ask = {"checkpoint": trained["checkpoint"], "prompt": "QUESTION: ", "max_new_tokens": 12, "seed": 3}
    whole = ratchet.http.post("/generate", json=ask)
    assert whole.status_code == 200, whole.text
    streamed = ratchet.http.post("/generate", json={**ask, "stream": True}).text
    tokens = [json.loads(data) for data in re.findall(r"event: token\r?\ndata: (.*)\r?\n", streamed)]
    assert "".join(token["text"] for token in tokens) == whole.json()["choices"][0]["text"]
    assert "event: done" in streamed


def test_a_checkpoint_can_be_talked_to_while_the_next_run_trains(ratchet: Ratchet, trained: dict[str, Any]) -> None:
    job = ratchet.submit(training_steps=100_000, checkpoint_interval=100_000, eval_interval=100_000)
    deadline = time.monotonic() + 30
    while ratchet.http.get(f"/jobs/{job['id']}").json()["step"] < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    ask = {"checkpoint": trained["checkpoint"], "prompt": "Q", "max_new_tokens": 5}
    assert ratchet.http.post("/generate", json=ask).status_code == 200
    assert ratchet.http.get(f"/jobs/{job['id']}").json()["state"] == "running"
    ratchet.http.post(f"/jobs/{job['id']}/cancel")
    assert "🛑 Stopped" in ratchet.follow(job["id"])
    cancelled = ratchet.http.get(f"/jobs/{job['id']}").json()
    assert (cancelled["state"], bool(cancelled["checkpoint"])) == ("cancelled", True)


def test_the_same_key_never_makes_a_second_job(ratchet: Ratchet) -> None:
    body = {"test_mode": True, "training_steps": 1, "max_new_tokens": 0}
    first, second = (ratchet.http.post("/jobs", json=body, headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json()["id"] == second.json()["id"]
    other = ratchet.http.post("/jobs", json={**body, "training_steps": 2}, headers={"Idempotency-Key": "once"})
    assert other.status_code == 422
    ratchet.follow(first.json()["id"])


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ({"source": "nowhere.md"}, "source_not_found", "'nowhere.md' does not exist"),
        ({"source": "../secret.md"}, "source_forbidden", "below the sources folder"),
        ({"source": "empty.md"}, "source_empty", "is empty"),
        (
            {"source": "short.md", "block_size": 12},
            "source_too_short",
            "12 characters, but block_size 12 needs at least 13",
        ),
        ({"source": "bad.md"}, "source_not_text", "offset 5 "),
        ({"batch_size": "lots"}, "request_invalid", "not 'lots'"),
        ({"n_embd": 130, "n_head": 4}, "request_invalid", "n_embd (130) must be divisible by n_head (4)"),
        ({"colour": "red"}, "request_invalid", "colour"),
    ],
)
def test_a_mistake_is_told_at_submit_in_one_sentence(
    ratchet: Ratchet, sources: Path, body: dict[str, Any], code: str, said: str
) -> None:
    (sources / "empty.md").write_text("\n")
    (sources / "short.md").write_text("far too thin")
    (sources / "bad.md").write_bytes(b"hello\xff")
    answer = ratchet.http.post("/jobs", json=body)
    told = answer.json()
    assert (answer.status_code, told["code"]) == (422, code), answer.text
    assert said in told["detail"]
    assert answer.headers["content-type"] == "application/problem+json"


def test_one_token_more_than_a_block_is_enough(ratchet: Ratchet, sources: Path) -> None:
    (sources / "just.md").write_text("just enough!!")
    job = ratchet.submit(source="just.md", block_size=12, training_steps=2, eval_interval=1)
    assert "validation runs on the training text itself" in ratchet.follow(job["id"])
    assert ratchet.http.get(f"/jobs/{job['id']}").json()["state"] == "succeeded"


def test_what_only_the_worker_can_know_fails_there_in_one_sentence(ratchet: Ratchet) -> None:
    job = ratchet.submit(model_type="gpt2", base_model="nobody/nothing")
    ratchet.follow(job["id"])
    failed = ratchet.http.get(f"/jobs/{job['id']}").json()
    assert (failed["state"], failed["error"]["code"], failed["attempt"]) == ("failed", "model_unavailable", 1)
    assert "hf download" in failed["error"]["message"]
    assert ratchet.http.get("/workers").json()["data"], "the worker lives on"


@pytest.mark.parametrize("ref", ["checkpoint_nobody", "job_nobody", "%2e%2e%2fetc"])
def test_an_unknown_checkpoint_is_a_404(ratchet: Ratchet, ref: str) -> None:
    assert ratchet.http.post(f"/jobs/{ref}/resume").status_code == 404


def test_no_answer_has_a_stack_trace_and_the_log_has_none(ratchet: Ratchet) -> None:
    assert "Traceback" not in ratchet.said


def test_another_address_needs_a_key_before_it_starts() -> None:
    started = subprocess.run(
        [sys.executable, "-m", "service"],
        cwd=PROJECT,
        env={"RATCHET_HOST": "0.0.0.0", "RATCHET_PORT": "0"},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert started.returncode == 2
    assert "set RATCHET_API_KEY" in started.stderr
    assert "Traceback" not in started.stderr


def test_with_a_key_nothing_is_open_but_the_probes_and_the_page(started: Callable[..., Any], tmp_path: Path) -> None:
    with started(tmp_path, "--host", "0.0.0.0", RATCHET_API_KEY="open sesame") as ratchet:
        assert ratchet.http.get("/livez").status_code == 200
        assert ratchet.http.get("/").status_code == 200
        assert ratchet.http.get("/jobs").status_code == 401
        assert ratchet.http.post("/generate", json={}).status_code == 401
        assert ratchet.http.get("/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 401
        assert ratchet.http.get("/jobs", headers={"Authorization": "Bearer open sesame"}).status_code == 200


def test_a_foreign_host_and_a_foreign_page_are_refused(ratchet: Ratchet) -> None:
    assert ratchet.http.get("/jobs", headers={"Host": "evil.example"}).status_code == 421
    assert ratchet.http.post("/jobs", json={}, headers={"Origin": "http://evil.example"}).status_code == 403


def test_ctrl_c_gives_the_running_job_back_and_the_next_start_goes_on(
    started: Callable[..., Any], tmp_path: Path
) -> None:
    with started(tmp_path, **LEAN) as ratchet:
        job = ratchet.submit(training_steps=500, checkpoint_interval=500, eval_interval=500, max_new_tokens=0)
        deadline = time.monotonic() + 30
        while ratchet.http.get(f"/jobs/{job['id']}").json()["step"] < 50:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        began = time.monotonic()
        assert ratchet.stop() == 0
        assert time.monotonic() - began < 25
    with started(tmp_path, **LEAN) as ratchet:
        text = ratchet.follow(job["id"])
        assert "🛑 Stopped" in text
        assert "✅ Training finished at step 500" in text
        steps = [data["step"] for _, kind, data in events_of(ratchet, job["id"]) if kind == "step"]
    assert steps == list(range(1, 501)), "nothing was lost and nothing was done twice"


def test_a_port_that_is_taken_is_one_sentence(started: Callable[..., Any], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with started(tmp_path, "--port", port, **LEAN) as ratchet:
            assert ratchet.process.wait(timeout=30) == 2
            assert ratchet.ready_line == ""
        assert f"port {port}" in ratchet.said
        assert "Traceback" not in ratchet.said


def test_the_page_and_the_documents_come_from_this_machine_alone(ratchet: Ratchet) -> None:
    page = ratchet.http.get("/").text
    for path in ("/", "/docs", *re.findall(r'(?:src|href)="(web/[^"]+)"', page)):
        answer = ratchet.http.get(path)
        assert answer.status_code == 200, path
        # A name space is not fetched.
        text = answer.text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://(?!127\.0\.0\.1|localhost)", text), path
