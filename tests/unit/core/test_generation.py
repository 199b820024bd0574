from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import GenerationError
from core.generation import Completion, Sampling, _held_back, generate_ids
from core.models.gpt2 import GPT2Wrapper
from core.tokens.tokenizer import CharacterTokenizer


class Parrot:
    """A model that says a text over and over; it counts how often it is asked."""

    def __init__(self, ids: list[int], vocab_size: int) -> None:
        self.ids, self.vocab_size, self.max_context, self.training, self.asked = ids, vocab_size, 1 << 20, False, 0

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def eval(self) -> None: ...

    def train(self, mode: bool) -> None: ...

    def predict(self, ids_BT: torch.Tensor, cache: Any) -> Any:
        logits_BV = torch.full((1, self.vocab_size), -1e9)
        logits_BV[0, self.ids[self.asked % len(self.ids)]] = 0
        self.asked += 1
        return logits_BV, cache


def said(
    text: str, stop: tuple[str, ...] = (), max_new_tokens: int | None = None
) -> tuple[list[str], Completion, Parrot]:
    tokenizer = CharacterTokenizer.of_text(text + "?")
    parrot = Parrot([int(i) for i in tokenizer.encode(text)], tokenizer.vocab_size)
    sampling = Sampling(len(text) if max_new_tokens is None else max_new_tokens, temperature=0, stop=stop)
    completion = Completion(parrot, tokenizer, "?", sampling)  # type: ignore[arg-type]
    return list(completion), completion, parrot


def test_text_ends_before_a_stop_string_that_spans_tokens() -> None:
    pieces, completion, parrot = said("hello END world", stop=("END",))
    assert ("".join(pieces), completion.finish_reason) == ("hello ", "stop")
    assert parrot.asked == len("hello END"), "nothing is computed beyond the stop"


def test_text_that_only_began_like_a_stop_string_is_shown() -> None:
    pieces, completion, _ = said("a STOLEN b", stop=("STOP",))
    assert ("".join(pieces), completion.finish_reason) == ("a STOLEN b", "length")


@given(st.text("abc", min_size=1, max_size=30), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_pieces_join_to_the_text_before_the_first_stop(text: str, marks: list[str]) -> None:
    pieces, _, _ = said(text, tuple(marks))
    # What stops is what is complete first, not what begins first.
    ends = [(text.find(mark) + len(mark), text.find(mark)) for mark in marks if mark in text]
    first_complete = min(end for end, _ in ends) if ends else None
    expected = text if first_complete is None else text[: min(at for end, at in ends if end == first_complete)]
    assert "".join(pieces) == expected


def test_half_a_character_is_held_back() -> None:
    assert _held_back("caf�", ()) == 1


def test_zero_tokens_is_no_text() -> None:
    pieces, completion, _ = said("abc", max_new_tokens=0)
    assert (pieces, completion.num_new_tokens) == ([], 0)


def test_the_same_seed_writes_the_same_text(run: Any, config: Any) -> None:
    parts = run(config()).trainer.parts
    texts = ["".join(Completion(parts.model, parts.tokenizer, "QUES", Sampling(30, 1.0, seed=s))) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_generation_leaves_the_generators_of_training_alone(run: Any, config: Any) -> None:
    parts = run(config()).trainer.parts
    before = torch.get_rng_state()
    list(Completion(parts.model, parts.tokenizer, "QUES", Sampling(5, 1.0, seed=1)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("kind", ["from_scratch", "gpt2"])
def test_a_text_longer_than_the_model_sees_goes_on(run: Any, config: Any, kind: str) -> None:
    parts = run(config(kind)).trainer.parts
    prompt = [1] * (parts.model.max_context + 3)
    assert len(list(generate_ids(parts.model, prompt, Sampling(40, seed=1)))) == 40


def test_greedy_is_what_transformers_writes(gpt2_folder: Path) -> None:
    model = GPT2Wrapper(gpt2_folder).eval()
    prompt = [int(i) for i in model.encode("QUESTION: What is 3 plus")]
    ours = list(generate_ids(model, prompt, Sampling(20, temperature=0)))
    theirs = model.network.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None
    )
    assert ours == theirs[0, len(prompt) :].tolist()


def drawn(logits: list[float], count: int = 400, **sampling: Any) -> set[int]:
    from core.generation import _choose

    generator = torch.Generator().manual_seed(0)
    return {_choose(torch.tensor(logits), [0], Sampling(**sampling), generator) for _ in range(count)}


def test_top_k_draws_from_the_k_likeliest() -> None:
    assert drawn([1.0, 1.1, 1.2, 1.3], temperature=1.0, top_k=2) == {2, 3}


def test_top_p_draws_from_the_fewest_that_reach_p() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert drawn(logits, temperature=1.0, top_k=None, top_p=0.75) == {0, 1}
    assert drawn(logits, temperature=1.0, top_k=None, top_p=0.01) == {0}


def test_extremes_are_greedy_and_never_an_error() -> None:
    assert drawn([1.0, 1.1], temperature=1e-300, top_k=None) == {1}
    assert drawn([1.0, 1.1], temperature=1.0, top_k=None, top_p=1e-300) == {1}


def test_repetition_penalty_makes_seen_tokens_less_likely() -> None:
    assert drawn([1.0, 0.9], temperature=0, repetition_penalty=2.0) == {1}
    assert drawn([-0.5, -0.9], temperature=0, repetition_penalty=2.0) == {1}


def test_a_prompt_of_unknown_characters_is_refused(run: Any, config: Any) -> None:
    parts = run(config()).trainer.parts
    with pytest.raises(GenerationError, match="'€'"):
        Completion(parts.model, parts.tokenizer, "€", Sampling(5))


def test_a_prompt_begins_as_its_tokenizer_says() -> None:
    class Begun(CharacterTokenizer):
        def beginning(self, text: str) -> list[int]:
            return [2]

    for prompt, ids in {"ab": [2, 0, 1], "": [2]}.items():
        assert Completion(Any, Begun(["a", "b", "^"]), prompt, Sampling()).prompt_ids == ids  # type: ignore[arg-type]
    assert Completion(Any, CharacterTokenizer(["a", "b"]), "", Sampling()).prompt_ids == [0]  # type: ignore[arg-type]
