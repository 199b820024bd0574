"""Byte pairs: every text goes in and comes out, the same source gives the same file, and a strange file is refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CheckpointCorrupt, CheckpointError, CheckpointUnsafe, GenerationError
from core.tokens import bpe
from core.tokens.bpe import BytePairTokenizer, load_bpe
from core.tokens.tokenizer import CharacterTokenizer, PretrainedTokenizer, Tokenizer, load_own_tokenizer
from tests.conftest import PROJECT
from tests.unit.core.conftest import TEXT

SMALL = BytePairTokenizer.train(iter([TEXT]), 400)

WHOLE_TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


@given(WHOLE_TEXTS)
def test_every_text_comes_back_to_the_letter(text: str) -> None:
    ids = SMALL.encode(text)
    assert SMALL.decode(ids) == text
    assert ids.dtype == np.int64
    assert all(0 < i < SMALL.vocab_size for i in ids), "and none of it is the end of an example"


@given(st.text("ab \n\t\u2028'5<|endoftext|>é", max_size=60), st.integers(1, 9))
def test_a_text_cut_for_many_cores_has_the_tokens_of_the_whole(text: str, size: int) -> None:
    whole = SMALL.encode(text).tolist()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe, "_PIECE_CHARS", size)
        patch.setattr(bpe, "_PIECES_AT_ONCE", 2)
        assert SMALL.encode(text).tolist() == whole


def test_a_source_is_encoded_in_fewer_tokens_than_it_has_characters() -> None:
    assert len(SMALL.encode(TEXT)) < 0.5 * len(TEXT)
    assert 257 < SMALL.vocab_size <= 400


def test_each_digit_is_a_token() -> None:
    texts = ["It is 1024. " * 50]
    trained = BytePairTokenizer.train(iter(texts), 400)
    assert len(trained.encode("1024")) == 4
    assert len(trained.encode("It is")) == 2


def test_the_end_of_an_example_is_no_text() -> None:
    assert SMALL.eos_id == 0
    assert SMALL.decode([0]) == "<|endoftext|>"
    assert 0 not in SMALL.encode("a text that says <|endoftext|> and goes on")


def test_an_empty_text_has_no_tokens() -> None:
    assert SMALL.encode("").shape == (0,)
    assert SMALL.decode([]) == ""
    assert BytePairTokenizer.train(iter([]), 4096).vocab_size == 257


def test_half_a_character_is_refused() -> None:
    with pytest.raises(GenerationError, match="half a character at place 1"):
        SMALL.encode("a\ud800")


def test_texts_are_read_as_they_come() -> None:
    """Not as one: a source may be larger than memory."""
    read = []

    def pieces() -> Any:
        for begin in range(0, len(TEXT), 1000):
            read.append(begin)
            yield TEXT[begin : begin + 1000]

    assert BytePairTokenizer.train(pieces(), 270).vocab_size == 270
    assert len(read) == len(range(0, len(TEXT), 1000))


def test_the_same_source_gives_the_same_file_in_every_process(tmp_path: Path) -> None:
    """Hash tables are in another order in each; nothing may depend on that."""
    (tmp_path / "text").write_text(TEXT + "über naïve 漢字 🎉 " * 7)
    program = (
        "import sys, pathlib; from core.tokens.bpe import BytePairTokenizer\n"
        "folder = pathlib.Path(sys.argv[1]); text = (folder / 'text').read_text()\n"
        "BytePairTokenizer.train(iter([text[:999], text[999:]]), 700).save(folder)\n"
        "print(__import__('hashlib').sha256((folder / 'tokenizer.json').read_bytes()).hexdigest())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    found = {subprocess.run(command, cwd=PROJECT, check=True, capture_output=True).stdout for _ in range(3)}
    assert len(found) == 1


def test_a_saved_tokenizer_is_the_same_to_the_byte(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()
    loaded = load_bpe(tmp_path)
    assert loaded.encode(TEXT).tolist() == SMALL.encode(TEXT).tolist()
    assert loaded.encode("<|endoftext|>").tolist() == SMALL.encode("<|endoftext|>").tolist()
    assert loaded.fingerprint == SMALL.fingerprint == hashlib.sha256(before).hexdigest()
    loaded.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_its_file_is_one_that_other_libraries_read(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    SMALL.save(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs("What is 3 plus 4?")["input_ids"] == SMALL.encode("What is 3 plus 4?").tolist()


Change = Callable[[dict[str, Any]], object]

STRANGE: dict[str, tuple[Change, str]] = {
    "another model": (lambda said: said["model"].update(type="WordLevel", unk_token="!"), "no byte pairs"),
    "no model": (lambda said: said.pop("model"), "cannot be read"),
    "a gap in the ids": (lambda said: said["model"]["vocab"].update(zzz=10_000), "do not count"),
    "no bytes": (lambda said: (said["model"]["vocab"].pop("Ā"), said["model"]["vocab"].update(ĀĀ=189)), "bytes"),
    "an end elsewhere": (lambda said: said["model"]["vocab"].update({"<|endoftext|>": 1, "!": 0}), "first token"),
    "merges of nothing": (lambda said: said["model"]["merges"].append(["zq", "qz"]), "cannot be read"),
}


@pytest.mark.parametrize("name", list(STRANGE))
def test_a_strange_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    change, sentence = STRANGE[name]
    SMALL.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    said = json.loads(path.read_text())
    change(said)
    path.write_text(json.dumps(said))
    with pytest.raises(CheckpointCorrupt) as refused:
        load_bpe(tmp_path)
    assert sentence in refused.value.message
    assert "\n" not in refused.value.message
    assert str(tmp_path) not in refused.value.message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"version":"1.0"}'])
def test_a_file_that_is_no_tokenizer_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"tokenizer\.json' cannot be read"):
        load_bpe(tmp_path)


def test_what_a_file_asks_for_beside_its_tokens_is_not_done(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    said = json.loads(path.read_text())
    said["normalizer"] = {"type": "Lowercase"}
    said["truncation"] = {"max_length": 1, "direction": "Right", "strategy": "LongestFirst", "stride": 0}
    said["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Removed", "invert": False}
    said["model"] |= {"dropout": 0.9, "ignore_merges": True}
    path.write_text(json.dumps(said))
    assert load_bpe(tmp_path).encode(TEXT).tolist() == SMALL.encode(TEXT).tolist()


def test_a_file_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "MAX_BPE_BYTES", 1000)
    SMALL.save(tmp_path)
    with pytest.raises(CheckpointUnsafe, match="more than 1000 bytes"):
        load_bpe(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    SMALL.save(tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "elsewhere")
    (tmp_path / "tokenizer.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointUnsafe):
        load_bpe(tmp_path)


@pytest.mark.parametrize("kept", [SMALL, CharacterTokenizer.of_text(TEXT)], ids=lambda kept: type(kept).__name__)
def test_a_checkpoint_finds_the_tokenizer_it_has_kept(tmp_path: Path, kept: Tokenizer) -> None:
    kept.save(tmp_path)
    found = load_own_tokenizer(tmp_path)
    assert type(found) is type(kept)
    assert found.encode(TEXT[:200]).tolist() == kept.encode(TEXT[:200]).tolist()
    assert found.eos_id == kept.eos_id


def test_a_checkpoint_without_a_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"characters\.json"):
        load_own_tokenizer(tmp_path)


class Theirs:
    def __init__(self, eos_token_id: int | None) -> None:
        self.eos_token_id = eos_token_id


@pytest.mark.parametrize(("said", "found"), [(None, None), (0, 0), (9, 9), (10, None), (-1, None)])
def test_a_bases_end_of_text_is_one_that_its_model_has(said: int | None, found: int | None) -> None:
    assert PretrainedTokenizer(Theirs(said), 10).eos_id == found
