"""What a user brings, over HTTP: sent, learnt by its method, resumed, and talked to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.acceptance.conftest import Ratchet
from tests.tiny_models import make_model_folder

NUMBERS = [(a, b) for a in range(7) for b in range(7)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "texts.jsonl": [{"text": f"{a} plus {b} is {a + b}."} for a, b in NUMBERS],
    "pairs.jsonl": [{"prompt": f"{a} plus {b}?", "completion": f" {a + b}"} for a, b in NUMBERS],
    "chats.jsonl": [
        {"messages": [{"role": "user", "content": f"{a} plus {b}?"}, {"role": "assistant", "content": f"{a + b}."}]}
        for a, b in NUMBERS
    ],
    "choices.jsonl": [{"prompt": f"{a} plus {b}?", "chosen": f" {a + b}", "rejected": " no"} for a, b in NUMBERS],
}
TINY = {"training_steps": 6, "checkpoint_interval": 3, "eval_interval": 3, "max_new_tokens": 5, "block_size": 48}
LLAMA = {"model_type": "causal_lm", "base_model": "tiny-llama", "use_lora": True}


@pytest.fixture(scope="module")
def ratchet(tmp_path_factory: pytest.TempPathFactory, started: Callable[..., Any]) -> Iterator[Ratchet]:
    folder = tmp_path_factory.mktemp("rows")
    text = "\n".join(row["text"] for row in ROWS["texts.jsonl"])
    make_model_folder(folder / "models" / "tiny-llama", text, "llama")
    options = ("--models", str(folder / "models"), "--sources", str(folder / "sources"))
    with started(folder / "data", *options) as up:
        for name, rows in ROWS.items():
            body = "".join(f"{json.dumps(row)}\n" for row in rows)
            answer = up.http.put(f"/sources/{name}", content=body.encode())
            assert (answer.status_code, answer.json()["num_rows"]) == (201, len(rows)), answer.text
        yield up


@pytest.mark.parametrize(
    "given",
    [
        {"source": "texts.jsonl"},
        {"source": "pairs.jsonl", "architecture": "modern", "tokenizer": "bpe", "bpe_vocab_size": 280},
        {"source": "pairs.jsonl", "optimizer": "muon", "lr_schedule": "cosine", "ema_decay": 0.9},
        {"source": "chats.jsonl", **LLAMA},
        {"source": "choices.jsonl", **LLAMA},
        {"sources": [{"source": "pairs.jsonl", "weight": 3}, {"source": "chats.jsonl"}], **LLAMA, "use_lora": False},
    ],
    ids=["texts", "pairs, modern", "pairs, muon", "chats", "choices", "pairs and chats"],
)
def test_rows_are_learnt_resumed_and_asked(ratchet: Ratchet, given: dict[str, Any]) -> None:
    job = ratchet.submit(**{**TINY, **given})
    text = ratchet.follow(job["id"])
    assert "✅ Training finished at step 6" in text, text
    middle = ratchet.http.get("/checkpoints", params={"job": job["id"]}).json()["data"][1]
    assert middle["step"] == 3
    resumed = ratchet.http.post(f"/jobs/{middle['id']}/resume", json={}).json()
    text = ratchet.follow(resumed["id"])
    assert "✅ Training finished at step 6" in text, text
    # The second run made the same three steps as the first.
    ends = [ratchet.http.get(f"/jobs/{one['id']}").json() for one in (job, resumed)]
    assert (ends[0]["train_loss"], ends[0]["val_loss"]) == (ends[1]["train_loss"], ends[1]["val_loss"])
    ask = {"checkpoint": ends[1]["checkpoint"], "prompt": "1 plus 2", "max_new_tokens": 4}
    assert ratchet.http.post("/generate", json=ask).json()["usage"]["completion_tokens"] == 4


def test_a_run_of_epochs_knows_its_length_once_the_rows_are_counted(ratchet: Ratchet) -> None:
    given = {"source": "pairs.jsonl", "num_epochs": 2, "batch_size": 5, "packing": False, "block_size": 48}
    answer = ratchet.http.post("/jobs", json={"test_mode": True, "max_new_tokens": 0, **given})
    job = answer.json()
    ratchet.follow(job["id"])
    done = ratchet.http.get(f"/jobs/{job['id']}").json()
    # 49 rows, of which 4 are kept back: 45 in batches of 5, twice.
    assert (done["state"], done["step"], done["training_steps"], done["progress"]) == ("succeeded", 18, 18, 1.0)


def test_what_will_be_skipped_is_said_at_submit(ratchet: Ratchet) -> None:
    body = "".join(f"{json.dumps(row)}\n" for row in [*ROWS["pairs.jsonl"], {"prompt": "alone"}])
    assert ratchet.http.put("/sources/flawed.jsonl", content=body.encode()).status_code == 201
    job = ratchet.submit(**TINY, source="flawed.jsonl")
    said = ratchet.http.get(f"/jobs/{job['id']}/events", params={"format": "json"}).json()["data"]
    warnings = [event["data"]["message"] for event in said if event["kind"] == "warning"]
    assert warnings[0].startswith("1 of the 50 rows of 'flawed.jsonl' will be skipped: line 50 has no 'completion'.")
    assert "✅ Training finished at step 6" in ratchet.follow(job["id"])


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"source": "choices.jsonl"}, "config_invalid"),
        ({"source": "texts.jsonl", "method": "sft"}, "source_no_rows"),
        ({"sources": [{"source": "pairs.jsonl"}, {"source": "choices.jsonl"}]}, "source_no_rows"),
        ({"source": "pairs.jsonl", "columns": {"text": "nothing"}}, "source_no_rows"),
        ({"sources": [{"source": "pairs.jsonl"}, {"source": "pairs.jsonl"}]}, "request_invalid"),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_what_cannot_be_learnt_is_refused_at_submit(ratchet: Ratchet, given: dict[str, Any], code: str) -> None:
    answer = ratchet.http.post("/jobs", json={**TINY, **given})
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
