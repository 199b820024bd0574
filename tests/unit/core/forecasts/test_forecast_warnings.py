"""What a user is told to think over, and that nothing is said where nothing is odd."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from core.config import TrainingConfig
from core.forecasts.forecast_warnings import Known, warnings_of
from core.sources.facts import SourceFacts
from core.sources.rows import RowKind, SourceFormat

TEXT = SourceFacts(1 << 20, 1 << 20, "", SourceFormat.TEXT, RowKind.TEXT, 1)
CHAT = SourceFacts(1 << 20, 1 << 20, "", SourceFormat.JSONL, RowKind.CHAT, 1000)
PREFERENCE = replace(CHAT, kind=RowKind.PREFERENCE)
GIB = 1 << 30
KNOWN = Known(
    num_val_tokens=100_000,
    num_val_examples=None,
    longest_example=None,
    padding=0.0,
    training_steps=1000,
    num_epochs=2.0,
    max_context=1024,
    vocab_size=4096,
    is_estimate=False,
    memory_bytes=GIB,
    activation_bytes=GIB // 2,
    checkpoint_bytes=0,
    memory_at_hand_bytes=16 * GIB,
    device="cpu",
)
GPT2 = {"model_type": "gpt2"}


@pytest.mark.parametrize("facts", [TEXT, CHAT], ids=["text", "chat"])
@pytest.mark.parametrize("known", [None, KNOWN], ids=["light", "known"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        GPT2,
        {**GPT2, "use_lora": True},
        {"architecture": "modern", "tokenizer": "bpe", "optimizer": "muon"},
        {"lr_schedule": "constant", "training_steps": 100_000, "test_mode": False},
        {"num_epochs": 3},
        {"gradient_accumulation_steps": 64},
    ],
)
def test_nothing_is_said_of_what_is_usual(given: dict[str, Any], known: Known | None, facts: SourceFacts) -> None:
    assert warnings_of(TrainingConfig(**given), [facts], known) == []


@pytest.mark.parametrize(
    ("given", "facts", "said"),
    [
        ({"test_mode": True}, replace(TEXT, num_characters=500), "50 tokens, less than one batch of 128"),
        ({}, replace(CHAT, num_rows=50), "only 5 examples are kept back"),
        ({}, replace(CHAT, num_rows=2), "only 1 example is kept back"),
        ({**GPT2, "learning_rate": 3e-4}, TEXT, "learning_rate 0.0003 is high for all weights of a pretrained model"),
        ({**GPT2, "use_lora": True, "learning_rate": 3e-3}, TEXT, "is high for adapters"),
        ({"learning_rate": 0.02}, TEXT, "is high for a model from scratch, where 3e-04 to 3e-03 is usual"),
        ({"learning_rate": 1e-7}, TEXT, "learning_rate 1e-07 is low"),
        ({**GPT2, "learning_rate": 1e-3}, PREFERENCE, "is high for preferences"),
        ({"optimizer": "muon", "muon_learning_rate": 0.5}, TEXT, "muon_learning_rate 0.5 is high"),
        ({"training_steps": 10, "warmup_steps": 20}, TEXT, "warmup_steps 20 is more than the run's 10 steps"),
        ({"training_steps": 50}, TEXT, "checkpoint_interval 100 is more than the run's 50 steps"),
        ({"use_dora": True, "use_rslora": True}, TEXT, "use_rslora, use_dora change nothing without use_lora"),
        ({"lora_targets": "q_proj"}, TEXT, "lora_targets changes nothing without use_lora"),
        ({**GPT2, "tokenizer": "bpe"}, TEXT, "tokenizer changes nothing in a pretrained model"),
        (
            {**GPT2, "architecture": "modern", "n_layer": 3},
            TEXT,
            "architecture, n_layer change nothing in a pretrained",
        ),
        ({"activation": "relu2"}, TEXT, "activation changes nothing in a classic model"),
        ({"bpe_vocab_size": 999}, TEXT, "bpe_vocab_size changes nothing with a tokenizer of characters"),
        ({"base_model": "small"}, TEXT, "base_model changes nothing in a model from scratch"),
        ({"muon_learning_rate": 0.03}, TEXT, "muon_learning_rate changes nothing without optimizer 'muon'"),
        ({"min_lr_ratio": 0.1}, TEXT, "min_lr_ratio changes nothing under a constant rate"),
        ({"decay_fraction": 0.1}, TEXT, "decay_fraction changes nothing without lr_schedule 'wsd'"),
        ({"early_stopping_min_delta": 0.1}, TEXT, "early_stopping_min_delta changes nothing without early_stopping_p"),
        ({"early_stopping_patience": 11}, TEXT, "early_stopping_patience 11 takes 1,100 steps at an eval_interval of"),
        ({"num_epochs": 30}, TEXT, "the source comes 30 times over: after 20"),
        ({"tokenizer": "bpe"}, replace(TEXT, num_characters=1000), "the vocabulary has at most 757 tokens"),
    ],
)
def test_what_needs_no_tokenizer_is_said_at_submit(given: dict[str, Any], facts: SourceFacts, said: str) -> None:
    found = warnings_of(TrainingConfig(**given), [facts])
    assert said in "\n".join(found)


@pytest.mark.parametrize(
    ("given", "known", "said"),
    [
        ({}, {"num_val_tokens": 2000}, "2,000 tokens, less than one batch of 2,048"),
        ({}, {"num_epochs": 20.5}, "the source comes 20 times over in 1,000 steps"),
        ({"num_epochs": 1}, {"training_steps": 50}, "checkpoint_interval 100 is more than the run's 50 steps"),
        ({"tokenizer": "bpe"}, {"vocab_size": 900}, "the vocabulary has 900 tokens"),
        ({}, {"max_context": 64}, "block_size 128 is more than the model's 64 positions"),
        ({"packing": False}, {"padding": 0.6}, "60% of each batch is padding"),
        ({"packing": False}, {"longest_example": 20}, "block_size 128 is much more than the longest example's 20"),
        ({}, {"memory_bytes": 20 * GIB}, "needs about 20.0 GiB of memory, and 16.0 GiB is at hand"),
        ({}, {"memory_bytes": 10 * GIB}, "needs about 10.0 GiB of the 16.0 GiB of memory at hand: it may not fit"),
        (
            {},
            {"memory_bytes": 15 * GIB, "device": "cuda"},
            "needs about 15.0 GiB of the 16.0 GiB of memory at hand: it may not fit",
        ),
        ({}, {"memory_bytes": 12 * GIB, "checkpoint_bytes": 8 * GIB}, "needs about 20.0 GiB"),
        ({"num_processes": 4}, {"memory_bytes": 5 * GIB}, "needs about 20.0 GiB"),
        ({}, {"memory_bytes": None, "activation_bytes": None}, "cannot be foretold"),
        ({"gradient_accumulation_steps": 4}, {}, "a batch_size of 64 needs about 2.5 GiB of the 16.0 GiB"),
    ],
)
def test_what_a_worker_knows_is_said(given: dict[str, Any], known: dict[str, Any], said: str) -> None:
    found = warnings_of(TrainingConfig(**given), [TEXT], replace(KNOWN, **known))
    assert said in "\n".join(found)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ({"test_mode": True}, {"num_val_tokens": 2000}),  # Its checkpoints are nobody's loss.
        ({"training_steps": 50, "enable_checkpoints": False}, {"training_steps": 50}),
        ({"tokenizer": "bpe"}, {"vocab_size": 900, "is_estimate": True}),  # The rest may have more.
        ({"packing": True}, {"padding": 0.6, "longest_example": 20}),
        ({}, {"memory_bytes": 12 * GIB, "checkpoint_bytes": 8 * GIB, "device": "cuda"}),
        ({"warmup_steps": 2000, "use_lr_warmup": False}, {}),
        ({"num_epochs": 1, "warmup_steps": 2000}, {}),
        ({"early_stopping_patience": 10}, {}),
        ({"use_lora": True, "use_dora": True, "lora_rank": 2}, {}),
        ({"architecture": "modern", "activation": "relu2", "tokenizer": "bpe", "bpe_vocab_size": 999}, {}),
        ({"lr_schedule": "wsd", "min_lr_ratio": 0.1, "decay_fraction": 0.3}, {}),
    ],
)
def test_nothing_is_said_of_what_does_no_harm(given: dict[str, Any], known: dict[str, Any]) -> None:
    assert warnings_of(TrainingConfig(**given), [TEXT], replace(KNOWN, **known)) == []


def test_each_is_one_line() -> None:
    odd = TrainingConfig(training_steps=3, warmup_steps=9, learning_rate=1, packing=False, block_size=9)
    known = replace(KNOWN, training_steps=3, num_epochs=99, max_context=2, padding=0.9, memory_bytes=99 * GIB)
    found = warnings_of(odd, [replace(CHAT, num_rows=3)], replace(known, num_val_examples=0))
    assert len(found) >= 7
    assert all("\n" not in said and (said[0].islower() or said[0].isdigit()) for said in found)
