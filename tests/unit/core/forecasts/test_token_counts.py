"""A worker counts the tokens of sources as a run would, under any tokenizer at hand, and not for longer than it may."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from core.checkpointing import CheckpointStore
from core.errors import CheckpointNotFound, ConfigError
from core.forecasts import token_counts
from core.sources.corpus import Corpus
from core.sources.files import SourceFolder
from core.tokens import encoding
from core.tokens.encoding import Encoder
from tests.unit.core.conftest import Run
from worker.forecasts import Forecasts
from worker.inference_requests import TokensAsk
from worker.settings import WorkerSettings

TEXT = "QUESTION: what is 1 plus 2?\nANSWER: 3\n" * 200
ROWS = [{"prompt": f"What is {n}?", "completion": "a number"} for n in range(300)]


@pytest.fixture
def settings(tmp_path: Path) -> WorkerSettings:
    root = tmp_path / "root"
    (root / "sources").mkdir(parents=True)
    (root / "sources" / "tale.md").write_text(TEXT)
    (root / "sources" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return WorkerSettings(data=root, sources=root / "sources", models=root / "models", checkpoints=root / "checkpoints")


@pytest.fixture
def base(settings: WorkerSettings, gpt2_folder: Path) -> str:
    shutil.copytree(gpt2_folder, settings.models / "tiny")
    return "tiny"


@pytest.fixture
def ask(settings: WorkerSettings) -> Any:
    def ask(*names: str, seconds: float = 30, most: int = 8 << 20, **who: str) -> list[tuple[Any, ...]]:
        folder = SourceFolder(settings.sources)
        sources = [
            {"name": name, "num_characters": facts.num_characters, "sha256": facts.sha256}
            for name in names
            for facts in [folder.inspect(name)]
        ]
        asked = TokensAsk.model_validate({"sources": sources, "seconds": seconds, "most_characters": most, **who})
        counts = Forecasts(settings).tokens(asked)["counts"]
        return [(count["num_tokens"], count["is_estimate"], count["error"]) for count in counts]

    return ask


def test_characters_are_counted_as_a_run_from_scratch_would(ask: Any) -> None:
    assert ask("tale.md") == [(len(TEXT), False, None)]
    [(rows, _, _)] = ask("rows.jsonl")
    assert rows == sum(len(row["prompt"]) + len(row["completion"]) + 2 for row in ROWS)


def test_a_base_counts_with_its_own_tokenizer(ask: Any, base: str, gpt2_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gpt2_folder)
    [text, rows] = ask("tale.md", "rows.jsonl", model=base)
    assert text == (len(tokenizer(TEXT, verbose=False)["input_ids"]), False, None)
    pieces = [row[part] for row in ROWS for part in ("prompt", "completion")]
    assert rows[0] == sum(map(len, tokenizer(pieces)["input_ids"])) + len(ROWS)


def test_a_long_source_is_reckoned_from_its_beginning(ask: Any, base: str, settings: WorkerSettings) -> None:
    [(exact, _, _)] = ask("rows.jsonl", model=base)
    [(told, is_estimate, _)] = ask("rows.jsonl", most=1000, model=base)
    assert is_estimate
    assert told == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("learns_all", [False, True])
def test_what_a_run_has_kept_is_told_to_the_token(
    ask: Any, base: str, settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch, learns_all: bool
) -> None:
    monkeypatch.setattr(encoding, "KEPT_FROM_BYTES", 1)
    part = Corpus.of_one(SourceFolder(settings.sources).file("rows.jsonl")).parts[0]
    tokenizer = token_counts.tokenizer_of_base(base, settings.models)
    kept = Encoder(tokenizer, learns_all, settings.data / "cache").tokens(part)
    monkeypatch.setattr(Encoder, "tokens", lambda *_: pytest.fail("it is known"))
    assert ask("rows.jsonl", most=1000, model=base) == [(len(kept.stored), False, None)]


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2", "llama_lora"])
def test_a_checkpoint_counts_with_its_own_tokenizer(
    ask: Any, settings: WorkerSettings, config: Any, corpus: Any, kind: str, llama_folder: Path
) -> None:
    if kind == "llama_lora":
        shutil.copytree(llama_folder, settings.models / "tiny-llama")
    given = {"base_model": "tiny-llama"} if kind == "llama_lora" else {}
    store = CheckpointStore(settings.checkpoints)
    trained = Run(
        config(kind, block_size=16, training_steps=2, eval_interval=2, **given),
        corpus([{"text": TEXT}]),
        store=store,
        **({"models_root": settings.models} if given else {}),
    )
    trained.trainer.train()
    [checkpoint, *_] = list(store)
    tokenizer = trained.trainer.parts.tokenizer
    assert ask("tale.md", checkpoint=checkpoint.path.name) == [(len(tokenizer.encode(TEXT)), False, None)]


def test_characters_that_a_checkpoint_has_never_seen_are_said(
    ask: Any, settings: WorkerSettings, config: Any, corpus: Any
) -> None:
    store = CheckpointStore(settings.checkpoints)
    Run(config(block_size=4, training_steps=2), corpus([{"text": "abc" * 50}]), store=store).trainer.train()
    [(count, _, error)] = ask("tale.md", checkpoint=next(iter(store)).path.name)
    assert count is None
    assert error["code"] == "generation_invalid"
    assert "has never seen" in error["message"]


@pytest.mark.parametrize("name", ["nothing", "org/nothing", "../models", "bpe"])
def test_a_tokenizer_that_is_not_at_hand_is_one_sentence_and_is_not_fetched(
    ask: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.models.base._from_hub", lambda *_, **__: pytest.fail("nobody asked to fetch it"))
    with pytest.raises(ConfigError, match=f"there is no tokenizer '{name}': give 'characters', a model of GET /models"):
        ask("tale.md", model=name)


@pytest.mark.parametrize("name", ["checkpoint_nothing", "../root", ".hidden"])
def test_a_checkpoint_that_is_not_there_is_not_found(ask: Any, name: str) -> None:
    with pytest.raises(CheckpointNotFound, match="no checkpoint"):
        ask("tale.md", checkpoint=name)


def test_sources_for_which_there_is_no_time_have_no_tokens(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(token_counts.time, "monotonic", lambda: now[0])
    count = token_counts.TokenCounter.count
    monkeypatch.setattr(
        token_counts.TokenCounter, "count", lambda self, part: (count(self, part), now.append(now.pop() + 20))[0]
    )
    assert [told[0] for told in ask("tale.md", "tale.md", "tale.md")] == [len(TEXT), len(TEXT), None]


def test_who_finds_another_at_work_does_not_wait_for_longer(settings: WorkerSettings) -> None:
    forecasts = Forecasts(settings)
    asked = TokensAsk.model_validate(
        {
            "sources": [{"name": "tale.md", "num_characters": 1, "sha256": ""}],
            "seconds": 0.05,
            "most_characters": 1,
        }
    )
    with forecasts._turn:
        found: list[Any] = []
        asking = threading.Thread(target=lambda: found.append(forecasts.tokens(asked)))
        asking.start()
        asking.join(20)
    assert found == [{"counts": [{"num_tokens": None, "is_estimate": False, "error": None}]}]


def test_a_source_that_is_gone_by_now_does_not_keep_the_others_from_being_counted(
    settings: WorkerSettings,
) -> None:
    sources = [{"name": name, "num_characters": len(TEXT), "sha256": ""} for name in ("gone.md", "tale.md")]
    asked = TokensAsk.model_validate({"sources": sources, "seconds": 30, "most_characters": 8 << 20})
    gone, there = Forecasts(settings).tokens(asked)["counts"]
    assert (gone["num_tokens"], gone["error"]["code"]) == (None, "source_not_found")
    assert there["num_tokens"] == len(TEXT)
