from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config import TrainingConfig, parse
from core.data import batch, get_batch, prepare_data_and_tokenizer, prepare_gpt2_data, split_tokens
from core.errors import GenerationError, SourceTooShort
from core.tokens.tokenizer import CharacterTokenizer

TOKENS = np.arange(1000, dtype=np.int32)


def test_a_batch_is_a_pure_function_of_seed_and_index() -> None:
    drawn = [batch(TOKENS, "train", 7, 1, 4, 8)[0] for _ in range(2)]
    np.random.seed(99)
    torch.manual_seed(99)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], batch(TOKENS, "train", 7, 1, 4, 8)[0])


def test_other_index_seed_or_stream_is_another_batch() -> None:
    base = batch(TOKENS, "train", 7, 1, 4, 8)[0]
    for stream, index, seed in [("train", 8, 1), ("train", 7, 2), ("val", 7, 1)]:
        assert not torch.equal(base, batch(TOKENS, stream, index, seed, 4, 8)[0])


def test_targets_are_the_inputs_one_step_on() -> None:
    ids_BT, targets_BT = batch(TOKENS, "train", 0, 1, 16, 8)
    assert ids_BT.shape == targets_BT.shape == (16, 8)
    assert torch.equal(ids_BT + 1, targets_BT)


def test_the_last_token_of_a_text_can_be_a_target() -> None:
    short = np.arange(9, dtype=np.int32)
    assert batch(short, "train", 0, 1, 4, 8)[1].max() == 8


def test_parts_have_different_tokens_and_get_batch_reads_the_right_one() -> None:
    train, val = np.zeros(50, dtype=np.int32), np.ones(50, dtype=np.int32)
    assert get_batch("train", train, val, 2, 4, index=0, seed=0)[0].sum() == 0
    assert get_batch("val", train, val, 2, 4, index=0, seed=0)[0].sum() == 8


def test_a_tenth_validates_and_nothing_is_in_both_parts() -> None:
    data = split_tokens(TOKENS.astype(np.int64), 8)
    assert (len(data.train), len(data.val)) == (900, 100)
    assert data.warning is None


@pytest.mark.parametrize(("num_tokens", "block_size"), [(18, 8), (19, 8), (40, 8), (95, 8)])
def test_each_part_of_a_small_text_has_room_for_a_block(num_tokens: int, block_size: int) -> None:
    data = split_tokens(np.arange(num_tokens), block_size)
    assert min(len(data.train), len(data.val)) >= block_size + 1
    assert len(data.train) + len(data.val) == num_tokens


@pytest.mark.parametrize("num_tokens", [9, 17])
def test_a_text_too_short_for_two_parts_validates_on_itself_with_a_warning(num_tokens: int) -> None:
    data = split_tokens(np.arange(num_tokens), 8)
    assert len(data.train) == len(data.val) == num_tokens
    assert data.warning
    assert str(num_tokens) in data.warning


def test_a_text_shorter_than_a_block_is_refused_with_both_numbers() -> None:
    with pytest.raises(SourceTooShort, match=r"8 tokens.*9"):
        prepare_gpt2_data(lambda text: np.arange(len(text)), "12345678", 8)


def test_from_scratch_makes_its_alphabet_of_the_text() -> None:
    config = parse(TrainingConfig, {"block_size": 4})
    prepared = prepare_data_and_tokenizer(config, "banana split " * 5)
    assert prepared.vocab_size == len(set("banana split "))
    assert prepared.decode(prepared.encode("split")) == "split"


@given(st.text(min_size=1))
def test_characters_survive_the_way_through_ids(text: str) -> None:
    tokenizer = CharacterTokenizer.of_text(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text).max() < tokenizer.vocab_size


def test_characters_that_were_never_seen_are_named() -> None:
    with pytest.raises(GenerationError, match=r"2 of the text's characters: 'ß' '€'"):
        CharacterTokenizer.of_text("abc").encode("a€bß")
