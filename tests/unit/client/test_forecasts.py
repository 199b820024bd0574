"""`ratchet preflight` and `ratchet preview`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.client.conftest import FakeService, Ratchet

FOUND: dict[str, Any] = {
    "method": "sft",
    "num_train_tokens": 36_000,
    "num_val_tokens": 4_000,
    "num_examples": 300,
    "tokens_per_step": 2048,
    "steps_per_epoch": 17.6,
    "training_steps": 1000,
    "num_epochs": 56.8,
    "num_parameters": 825_156,
    "num_trainable": 825_156,
    "memory_bytes": {"total": 80 << 20},
    "memory_at_hand_bytes": 16 << 30,
    "device": "cpu",
    "seconds_per_step": None,
    "seconds": None,
    "is_estimate": False,
    "skipped_rows": [
        {"source": "chat.jsonl", "num": 2, "place": "line", "first": [{"number": 7, "reason": "is no\x1b JSON"}]}
    ],
    "warnings": ["the source comes 57 times over"],
}
UNKNOWN = {
    **dict.fromkeys(FOUND),
    **{"method": "lm", "tokens_per_step": 2048, "training_steps": 1000, "is_estimate": False},
    **{
        "skipped_rows": [{"source": "tale.md", "num": 0, "place": "piece", "first": []}],
        "warnings": ["no worker answers now"],
    },
}
BATCH: dict[str, Any] = {
    "method": "sft",
    "num_rows": 16,
    "row_length": 24,
    "num_tokens": 350,
    "num_learnt": 200,
    "num_padding": 34,
    "is_estimate": False,
    "rows": [
        {
            "pieces": [
                {"text": "Ask\n[bold]it[/bold] ", "learnt": False, "example": 0},
                {"text": "Say\x1b[2J", "learnt": True, "example": 0},
                {"text": "More ", "learnt": False, "example": 1},
            ],
            "padding": 3,
            "answer": "better",
            "is_cut": True,
        }
    ],
    "warnings": ["2 of 302 rows are left out"],
}


def test_a_run_is_told_before_it_begins(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("POST", "/jobs/preflight", FOUND)
    code, out, _ = ratchet("preflight", "chat.jsonl", "--training-steps", "1000", "--no-packing")
    assert code == 0
    assert service.last("/jobs/preflight").path == "/jobs/preflight"
    assert service.last("/jobs/preflight").body == {
        "source": "chat.jsonl",
        "training_steps": 1000,
        "packing": False,
    }
    for part in (
        "36,000 to learn from, 4,000 to validate with",
        "1,000 of 2,048 tokens each",
        "56.8, of 18 steps each",
        "825,156",
        "about 80.0 MiB of the 16.0 GiB at hand on cpu",
        "2 rows of chat.jsonl cannot be used",
        "line 7 is no",
        "⚠️  the source comes 57 times over",
    ):
        assert part in out
    assert "\x1b" not in out
    assert "a step" not in out
    assert json.loads(ratchet("preflight", "chat.jsonl", "--json")[1]) == FOUND


def test_the_time_of_a_run_is_asked_for(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("POST", "/jobs/preflight", {**FOUND, "seconds_per_step": 0.25, "seconds": 250.0})
    assert "about 4m 10s, 0.25 s a step" in ratchet("preflight", "chat.jsonl", "--time")[1]
    assert service.last("/jobs/preflight").path == "/jobs/preflight?time=true"


def test_what_is_not_known_without_a_worker_is_a_dash(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("POST", "/jobs/preflight", UNKNOWN)
    code, out, _ = ratchet("preflight")
    assert code == 0
    assert "– to learn from" in out
    assert "no device yet" in out
    assert "cannot be used" not in out
    assert "no worker answers now" in out


def test_a_batch_is_shown_with_what_is_masked(service: FakeService, ratchet: Ratchet) -> None:
    service.lay("GET", "/sources/a%2Fchat.jsonl/preview", BATCH)
    code, out, _ = ratchet("preview", "a/chat.jsonl", "--batch-size", "16", "--columns", '{"prompt": "q"}')
    assert code == 0
    asked = service.last("/sources/a%2Fchat.jsonl/preview").path.partition("?")[2]
    assert "batch_size=16" in asked
    assert "columns=" in asked
    assert "learning" not in ratchet("preview", "--help")[1]
    for part in (
        "row 1 (better answer)",
        "Ask\n[bold]it[/bold] ⟦Say",
        "── another example ──",
        "[padding × 3]",
        "… and 15 more rows",
        "350 tokens in 16 rows of 24: ⟦200 learnt⟧, 150 only read, 34 more are padding",
        "2 of 302 rows are left out",
    ):
        assert part in out
    assert "\x1b" not in out
    assert json.loads(ratchet("preview", "a/chat.jsonl", "--json")[1]) == BATCH


def test_colours_say_it_where_there_are_some(
    service: FakeService, ratchet: Ratchet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    service.lay("GET", "/sources/chat.jsonl/preview", BATCH)
    out = ratchet("preview", "chat.jsonl")[1]
    assert "\x1b[32mSay" in out
    assert "\x1b[2J" not in out
    assert "⟦" not in out
