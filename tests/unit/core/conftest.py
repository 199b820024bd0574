from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from core.assembly import assemble
from core.checkpointing import CheckpointStore, load_checkpoint
from core.config import TrainingConfig, parse
from core.events import Event
from core.sources.corpus import Corpus, Part
from core.sources.files import SourceText, read_source, source_file
from core.trainer import Trainer
from tests.tiny_models import make_gpt2_folder, make_model_folder

TEXT = "\n\n".join(f"QUESTION: What is {a} plus {b}?\nANSWER: It is {a + b}." for a in range(12) for b in range(12))

KINDS: dict[str, dict[str, Any]] = {
    "from_scratch": {"model_type": "from_scratch"},
    "from_scratch_lora": {"model_type": "from_scratch", "use_lora": True, "lora_dropout": 0.1},
    "modern": {"model_type": "from_scratch", "architecture": "modern", "tokenizer": "bpe", "bpe_vocab_size": 300},
    "gpt2": {"model_type": "gpt2", "learning_rate": 1e-3},
    "gpt2_lora": {"model_type": "gpt2", "use_lora": True, "lora_dropout": 0.1, "learning_rate": 1e-3},
    "llama": {"model_type": "causal_lm", "learning_rate": 1e-3},
    "llama_lora": {"model_type": "causal_lm", "use_lora": True, "lora_dropout": 0.1, "learning_rate": 1e-3},
    "llama_nf4_lora": {
        **{"model_type": "causal_lm", "use_lora": True, "lora_dropout": 0.1, "learning_rate": 1e-3},
        "quantization": "nf4",
    },
}


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Models of these tests are so small that a second thread only waits for the first."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gpt2_folder(tmp_path_factory.mktemp("models") / "tiny-gpt2", TEXT)


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("models") / "tiny-llama", TEXT, "llama")


@pytest.fixture
def source(tmp_path: Path) -> SourceText:
    path = tmp_path / "sums.md"
    path.write_text(TEXT)
    return read_source(path)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """A corpus of JSONL files, one for each list of rows."""

    def corpus(*sources: list[Any], weights: list[float] | None = None) -> Corpus:
        parts = []
        for rows, weight in zip(sources, weights or [1.0] * len(sources), strict=True):
            path = tmp_path / f"rows{len(list(tmp_path.iterdir()))}.jsonl"
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            parts.append(Part(source_file(path), weight))
        return Corpus(tuple(parts))

    return corpus


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def config(gpt2_folder: Path, llama_folder: Path) -> Callable[..., TrainingConfig]:
    def config(kind: str = "from_scratch", **given: Any) -> TrainingConfig:
        tiny = {
            "source": "sums.md",
            "base_model": str(llama_folder if kind.startswith("llama") else gpt2_folder),
            "test_mode": True,
            "training_steps": 8,
            "eval_interval": 4,
            "eval_iters": 1,
            "checkpoint_interval": 4,
            "keep_checkpoints": 0,
            "block_size": 16,
            "batch_size": 2,
            "n_embd": 16,
            "max_new_tokens": 0,
            "device": "cpu",
        }
        return parse(TrainingConfig, {**tiny, **KINDS[kind], **given})

    return config


class Run:
    """A trainer with everything it said."""

    def __init__(self, config: TrainingConfig, source: SourceText | Corpus, **given: Any) -> None:
        self.events: list[Event] = []
        self.stop_at: int | None = None
        self.trainer: Trainer = assemble(config, source, self.events.append, self.should_stop, **given)

    def should_stop(self) -> bool:
        return self.stop_at is not None and self.trainer.run.step >= self.stop_at

    def of(self, kind: str) -> list[Any]:
        return [event for event in self.events if event.kind == kind]

    @property
    def lines(self) -> list[str]:
        return [event.line for event in self.of("log")]


@pytest.fixture
def run(source: SourceText) -> Callable[..., Run]:
    def run(config: TrainingConfig, **given: Any) -> Run:
        return Run(config, given.pop("source", source), **given)

    return run


@pytest.fixture
def check_resume(run: Callable[..., Run], store: CheckpointStore) -> Callable[[TrainingConfig], None]:
    """That a run which goes on from its checkpoint at step 4 ends with the weights of the one never stopped."""

    def check(settings: TrainingConfig) -> None:
        whole = run(settings, store=store)
        whole.trainer.train()
        content = load_checkpoint(next(item.path for item in store if item.manifest.step == 4))
        second = run(settings, resume=content, end_step=content["end_step"])
        second.trainer.train()
        ends = [told.trainer.parts.model.state_dict() for told in (whole, second)]
        assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())

    return check
