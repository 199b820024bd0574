"""What a run would do and see, asked before it: over HTTP, of a real worker, and from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.acceptance.conftest import TINY, Ratchet
from tests.conftest import PROJECT
from tests.tiny_models import make_model_folder

BUNDLED = "training_data_final_merged.md"

CHAT = [
    {
        "messages": [
            {"role": "user", "content": f"What is {a} plus {a}?"},
            {"role": "assistant", "content": f"It is {2 * a}."},
        ]
    }
    for a in range(40)
]


@pytest.fixture(scope="module")
def ratchet(
    tmp_path_factory: pytest.TempPathFactory, started: Callable[..., Any], bundled_source: Path
) -> Iterator[Ratchet]:
    folder = tmp_path_factory.mktemp("forecasts")
    sources = folder / "sources"
    (sources / "chats").mkdir(parents=True)
    shutil.copy(bundled_source, sources)
    lines = [*map(json.dumps, CHAT), "no json", '{"messages": []}']
    (sources / "chats" / "sums.jsonl").write_text("\n".join(lines))
    make_model_folder(folder / "models" / "tiny-llama", bundled_source.read_text()[:50_000], "llama")
    told = ("--models", str(folder / "models"), "--sources", str(sources))
    with started(folder / "data", *told) as up:
        _until_generating(up)
        yield up


def _until_generating(ratchet: Ratchet) -> None:
    deadline = time.monotonic() + 60
    while not any(worker["generates"] for worker in ratchet.http.get("/workers").json()["data"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def preflight(ratchet: Ratchet, **config: Any) -> httpx2.Response:
    return ratchet.http.post("/jobs/preflight", json=config)


def test_what_a_run_on_the_bundled_source_would_do_is_told(ratchet: Ratchet, bundled_source: Path) -> None:
    answer = preflight(ratchet, source=BUNDLED, training_steps=100)
    found = answer.json()
    assert answer.status_code == 200, answer.text
    num_characters = len(bundled_source.read_text())
    assert found["num_train_tokens"] + found["num_val_tokens"] == num_characters
    assert (found["method"], found["is_estimate"], found["num_examples"]) == ("lm", False, None)
    assert found["tokens_per_step"] == 16 * 128
    assert found["num_epochs"] == pytest.approx(100 * 16 * 128 / found["num_train_tokens"], abs=0.01)
    assert found["memory_bytes"]["total"] < found["memory_at_hand_bytes"]
    assert (found["seconds"], found["seconds_per_step"]) == (None, None)
    assert found["warnings"] == []
    assert ratchet.http.get("/jobs").json()["data"] == [], "nothing is started"


def test_what_was_foretold_is_what_the_run_does(ratchet: Ratchet) -> None:
    config = {**TINY, "source": "chats/sums.jsonl", "num_epochs": 2, "max_new_tokens": 0, "block_size": 64}
    config.pop("training_steps")
    found = preflight(ratchet, **config).json()
    job = ratchet.http.post("/jobs", json=config).json()
    assert f"✅ Training finished at step {found['training_steps']}" in ratchet.follow(job["id"])
    page = ratchet.http.get(f"/jobs/{job['id']}/events", headers={"Accept": "application/json"}).json()["data"]
    started = next(item["data"] for item in page if item["kind"] == "started")
    same = ("num_parameters", "num_trainable")
    assert {name: started[name] for name in same} == {name: found[name] for name in same}
    assert (started["train_tokens"], started["val_tokens"]) == (found["num_train_tokens"], found["num_val_tokens"])


def test_rows_that_cannot_be_used_and_what_to_think_over_are_told(ratchet: Ratchet) -> None:
    llama = {"model_type": "causal_lm", "base_model": "tiny-llama", "use_lora": True, "learning_rate": 0.05}
    found = preflight(ratchet, source="chats/sums.jsonl", **llama, training_steps=500, warmup_steps=600).json()
    assert (found["method"], found["num_examples"]) == ("sft", 40)
    [skipped] = found["skipped_rows"]
    assert (skipped["source"], skipped["num"]) == ("chats/sums.jsonl", 2)
    assert [row["number"] for row in skipped["first"]] == [41, 42]
    said = "\n".join(found["warnings"])
    assert "only 4 examples are kept back to validate with" in said
    assert "learning_rate 0.05 is high for adapters of a pretrained model" in said
    assert "warmup_steps 600 is more than the run's 500 steps" in said
    assert "block_size 128 is more than the model's 64 positions; training with 64" in said
    assert found["num_trainable"] < found["num_parameters"]


def test_a_run_that_would_be_refused_is_refused_alike(ratchet: Ratchet) -> None:
    for config in (
        {"source": "gone.md"},
        {"source": BUNDLED, "block_size": 0},
        {"source": BUNDLED, "model_type": "gpt2", "base_model": "/etc"},
        {"source": "chats/sums.jsonl", "method": "dpo", "model_type": "gpt2"},
    ):
        refused, submitted = preflight(ratchet, **config), ratchet.http.post("/jobs", json=config)
        assert refused.status_code == submitted.status_code == 422
        assert {**refused.json(), "request_id": ""} == {**submitted.json(), "request_id": ""}


def test_a_base_that_is_not_there_is_told_before_the_run_begins(ratchet: Ratchet) -> None:
    answer = preflight(ratchet, source=BUNDLED, model_type="causal_lm", base_model="nowhere")
    assert (answer.status_code, answer.json()["code"]) == (409, "model_unavailable")


def test_how_long_a_run_takes_is_tried(ratchet: Ratchet) -> None:
    config = {**TINY, "source": BUNDLED}
    found = ratchet.http.post("/jobs/preflight", json=config, params={"time": True}).json()
    assert 0 < found["seconds_per_step"] < 10
    assert found["seconds"] == pytest.approx(40 * found["seconds_per_step"])


def test_the_first_batch_of_a_conversation_has_its_questions_masked(ratchet: Ratchet) -> None:
    options = {"batch_size": 2, "block_size": 100}
    answer = ratchet.http.get("/sources/chats%2Fsums.jsonl/preview", params=options)
    found = answer.json()
    assert answer.status_code == 200, answer.text
    assert (found["method"], found["num_rows"], len(found["rows"])) == ("sft", 2, 2)
    assert found["num_tokens"] + found["num_padding"] == 2 * found["row_length"]
    for row in found["rows"]:
        for piece in row["pieces"]:
            assert piece["text"].startswith("It is " if piece["learnt"] else "USER: What is ")
        assert {piece["example"] for piece in row["pieces"]} == set(range(len(row["pieces"]) // 2))


def test_a_person_sees_what_is_learnt(ratchet: Ratchet) -> None:
    told = {"RATCHET_URL": ratchet.url, "PATH": "/usr/bin", "COLUMNS": "120"}

    def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "client", *arguments]
        return subprocess.run(command, cwd=PROJECT, env=told, capture_output=True, text=True, check=True).stdout

    shown = said("preview", "chats/sums.jsonl", "--no-packing")
    assert "ASSISTANT: ⟦It is " in shown
    assert "[padding × " in shown
    assert "only read" in shown
    shown = said("preflight", "chats/sums.jsonl", "--training-steps", "3000")
    assert "2 rows of chats/sums.jsonl cannot be used" in shown
    assert "times over in 3,000 steps" in shown
