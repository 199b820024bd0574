"""What is said of a run that is not begun, against the run itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from core.assembly import assemble
from core.config import TrainingConfig
from core.errors import ConfigError, ModelUnavailable, SourceTooShort
from core.forecasts.preflight import Prospect, preflight
from core.forecasts.timing import seconds_per_step, timed
from core.models.four_bit import num_weights
from core.sources.beginnings import Beginning, beginnings
from core.sources.corpus import Corpus
from core.sources.files import SourceFolder
from core.sources.rows import TextRow
from tests.tiny_models import make_gpt2_folder
from tests.unit.core.conftest import TEXT

ROWS = [{"prompt": f"What is {a} plus {b}? ", "completion": f"It is {a + b}."} for a in range(12) for b in range(12)]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "Who knows?"} for row in ROWS]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources")
    (folder / "text.md").write_text(TEXT * 4)
    (folder / "sums.jsonl").write_text("\n".join([*map(json.dumps, ROWS), "no json"]))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    make_gpt2_folder(folder / "models" / "tiny", TEXT)
    return folder


def parts_of(root: Path, config: TrainingConfig, **options: Any) -> tuple[Beginning, ...]:
    folder = SourceFolder(root)
    numbers = {share.source: folder.inspect(share.source).num_characters for share in config.shares}
    return beginnings(config.shares, folder, numbers, **options)


def prospect_of(root: Path, config: TrainingConfig, **options: Any) -> Prospect:
    return Prospect(config, parts_of(root, config, **options), root / "models")


SMALL: dict[str, Any] = {"n_embd": 32, "n_head": 2, "n_layer": 2, "block_size": 48, "batch_size": 4}
TWO = [{"source": "sums.jsonl", "weight": 3}, {"source": "text.md"}]
TINY = {"model_type": "gpt2", "base_model": "tiny", "block_size": 48, "batch_size": 4}
RUNS: dict[str, dict[str, Any]] = {
    "text": {**SMALL, "source": "text.md"},
    "byte pairs": {**SMALL, "source": "text.md", "tokenizer": "bpe", "bpe_vocab_size": 300, "architecture": "modern"},
    "answers": {**SMALL, "source": "sums.jsonl"},
    "answers apart": {**SMALL, "source": "sums.jsonl", "packing": False},
    "answers as text": {**SMALL, "source": "sums.jsonl", "method": "lm"},
    "several": {**SMALL, "sources": TWO, "method": "lm"},
    "gpt2": {**TINY, "source": "sums.jsonl"},
    "gpt2 lora": {**TINY, "source": "sums.jsonl", "use_lora": True},
    "gpt2 in four bits": {**TINY, "source": "sums.jsonl", "use_lora": True, "quantization": "nf4"},
    "preferences": {**TINY, "source": "pairs.jsonl"},
    "frozen": {**TINY, "source": "sums.jsonl", "freeze_layers": 1},
    "epochs": {**SMALL, "source": "sums.jsonl", "num_epochs": 1.5, "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("kind", RUNS)
def test_what_is_foretold_is_what_is_put_together(root: Path, kind: str) -> None:
    config = TrainingConfig(**RUNS[kind])
    prospect = prospect_of(root, config)
    corpus = Corpus.of(config.shares, SourceFolder(root).file)
    trainer = assemble(config, corpus, lambda _: None, lambda: False, models_root=root / "models")
    parts = trainer.parts
    foretold, own = prospect.data.training(0), parts.data.training(0)
    assert torch.equal(foretold.ids_BT, own.ids_BT)
    assert torch.equal(foretold.targets_BT, own.targets_BT)
    assert prospect.tokenizer.vocab_size == parts.tokenizer.vocab_size
    longest = max(parts.data.training(index).ids_BT.shape[1] for index in range(50))
    assert longest - 8 < prospect.longest_row <= longest
    found = preflight(prospect)
    assert found["method"] == parts.method
    assert found["num_train_tokens"] == parts.data.num_tokens["train"]
    assert found["num_val_tokens"] == parts.data.num_tokens["val"]
    assert found["tokens_per_step"] == parts.tokens_per_step
    assert found["steps_per_epoch"] == pytest.approx(parts.steps_per_epoch, abs=0.01)
    assert found["training_steps"] == trainer.run.end_step
    assert (found["num_parameters"], found["num_trainable"]) == num_weights(parts.model)
    assert found["said"] == [said for said in parts.data.warnings if "left out" not in said]
    assert found["num_examples"] == {"lm": None, "sft": 144, "dpo": 144}[parts.method]
    assert not found["is_estimate"]
    json.dumps(found, allow_nan=False)


def test_rows_that_are_left_out_are_counted(root: Path) -> None:
    [skipped] = preflight(prospect_of(root, TrainingConfig(**RUNS["answers"])))["skipped_rows"]
    assert (skipped["source"], skipped["num"], skipped["place"]) == ("sums.jsonl", 1, "line")
    assert skipped["first"][0]["number"] == 145


@pytest.mark.parametrize("kind", ["answers as text", "answers", "answers apart", "preferences", "several"])
def test_of_a_large_source_the_beginning_is_read_and_scaled_up(root: Path, kind: str) -> None:
    config = TrainingConfig(**RUNS[kind])
    whole, part = preflight(prospect_of(root, config)), preflight(prospect_of(root, config, most=2000))
    assert part["is_estimate"]
    for name in ("num_train_tokens", "num_val_tokens", "steps_per_epoch", "num_epochs", "num_examples"):
        if whole[name] is not None:
            assert part[name] == pytest.approx(whole[name], rel=0.2), name


def test_no_more_is_read_than_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n' + "bad\n" * 5000)
    (tmp_path / "long.md").write_text("word " * (1 << 20))
    for name, most in (("bad.jsonl", 1000), ("long.md", 1)):
        [part] = beginnings(TrainingConfig(source=name).shares, SourceFolder(tmp_path), {name: 1 << 23}, most=most)
        rows = list(part.rows())
        assert len(rows) <= 12
        assert part.scale > 1
    assert len(rows) == 1
    assert isinstance(rows[0], TextRow)


def test_weights_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("core.models.causal_lm.load_causal_lm", load)
    assert preflight(prospect_of(root, TrainingConfig(**RUNS["gpt2 lora"])))["num_trainable"] > 0


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({**SMALL, "source": "text.md", "block_size": 100_000}, SourceTooShort),
        ({**TINY, "base_model": "models", "source": "text.md"}, ModelUnavailable),
        ({**TINY, "source": "text.md", "freeze_layers": 9}, ConfigError),
        ({**TINY, "source": "text.md", "use_lora": True, "lora_targets": "nowhere"}, ConfigError),
    ],
)
def test_what_would_end_the_run_at_once_is_raised(
    root: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], error: type[Exception]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("core.models.base._hub_unreachable", lambda: "offline")
    with pytest.raises(error):
        preflight(prospect_of(root, TrainingConfig(**given)))


def test_a_few_updates_are_tried(root: Path) -> None:
    config = TrainingConfig(**RUNS["answers"])
    told = {
        "config": config.model_dump(mode="json"),
        "sources": str(root),
        "models": str(root / "models"),
        "num_characters": {"sums.jsonl": 5000},
    }
    assert 0 < timed(told) < 5


def test_updates_that_cannot_be_made_have_no_time(root: Path) -> None:
    config = TrainingConfig(**{**RUNS["answers"], "block_size": 1, "method": "sft"})
    assert seconds_per_step(config, root, root / "models", {"sums.jsonl": 5000}) is None


def test_batches_of_any_size_are_told_of_without_being_made(root: Path) -> None:
    config = TrainingConfig(**{**RUNS["answers apart"], "batch_size": 65_536, "block_size": 2000})
    found = preflight(prospect_of(root, config))
    assert found["memory_bytes"]["total"] > 1 << 30
    assert found["known"]["padding"] >= 0
