"""Many rows at once become exactly what each by itself does."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from transformers import PreTrainedTokenizerFast

from core.errors import GenerationError
from core.sources.corpus import Corpus, Part
from core.sources.files import source_file
from core.sources.row_json import Unfit
from core.sources.rows import BadRow, SourceFormat, TextRow
from core.tokens import bpe, encoding
from core.tokens.bpe import BytePairTokenizer
from core.tokens.conversations import END, PLAIN_END, examples_of
from core.tokens.encoding import Encoder, texts_as_lines
from core.tokens.tokenizer import CharacterTokenizer, Encoded, PretrainedTokenizer, Tokenizer

TEXT = (Path(__file__).parents[4] / "sources" / "training_data_final_merged.md").read_text()[:60_000]
PARAGRAPHS = [*TEXT.split("\n\n"), "Ünïcode — 漢字かな 🙂 e\u0301", "1234 5", "\t x\r\n  y \u00a0z ", "a<|im_end|> b"]
CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
LIKE_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Make = Callable[[str], Tokenizer]


def library(pre_tokenizer: Any, normalizer: Any = None, added: tuple[AddedToken, ...] = ()) -> Library:
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken("<|im_end|>", special=True, normalized=False), *added])
    return tokenizer


def like_gpt2(*added: AddedToken) -> Library:
    return library(pre_tokenizers.ByteLevel(add_prefix_space=False), None, added)


def like_qwen(*added: AddedToken) -> Library:
    split = pre_tokenizers.Split(Regex(LIKE_QWEN), "isolated")
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return library(pre_tokenizers.Sequence([split, by_bytes]), normalizers.NFC(), added)


def pretrained(tokenizer: Library, template: str | None = None) -> PretrainedTokenizer:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.chat_template = template
    return PretrainedTokenizer(fast, len(fast))


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "characters": lambda: CharacterTokenizer(sorted({*"".join(PARAGRAPHS), *map(chr, range(128))})),
    "bpe": lambda: BytePairTokenizer.train([TEXT], 600),
    "like_gpt2": lambda: pretrained(like_gpt2()),
    "like_qwen": lambda: pretrained(like_qwen(), CHAT),
    # One that takes the spaces after it cannot be encoded in parts.
    "of_the_library": lambda: pretrained(like_gpt2(AddedToken("<|user|>", rstrip=True))),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]()


def a_row(kind: str, chance: random.Random) -> dict[str, Any]:
    said = chance.choices(PARAGRAPHS, k=4)
    if chance.random() < 0.1:
        return {"prompt": said[0]} if kind != "chat" else {"messages": []}
    match kind:
        case "text":
            return {"text": said[0]}
        case "completion":
            return {"prompt": chance.choice(["", said[0]]), "completion": said[1]}
        case "preference":
            return {"prompt": said[0], "chosen": f"{said[1]}!", "rejected": said[2]}
    roles = chance.choice([("user", "assistant"), ("system", "user", "assistant"), ("user", "assistant") * 2])
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]}


def a_source(folder: Path, kind: str) -> Path:
    chance = random.Random(kind)
    path = folder / f"{kind}.{'txt' if kind == 'plain' else 'csv' if kind == 'table' else 'jsonl'}"
    with path.open("w", newline="") as file:
        if kind == "plain":
            file.write("\n\n".join(chance.choices(PARAGRAPHS, k=6000)))
        elif kind == "table":
            csv.writer(file).writerows(
                [("prompt", "completion"), *(chance.choices(PARAGRAPHS, k=2) for _ in range(99))]
            )
        else:
            # The first row that is good says which rows are.
            file.writelines(json.dumps(a_row(kind, chance)) + "\n" for _ in range(300))
    return path


def row_by_row(encoder: Encoder, part: Part) -> Iterator[tuple[list[np.ndarray], str | None]]:
    """The plain way: what each row becomes, or why nothing does."""
    eos_id, encode = encoder.tokenizer.eos_id, encoder.tokenizer.encode
    for row in texts_as_lines(part):
        if isinstance(row, BadRow):
            yield [], row.reason
            continue
        if part.format is SourceFormat.TEXT:
            assert isinstance(row, TextRow)
            yield [encode(row.text)], None
            continue
        try:
            examples = examples_of(row, encoder.render, learns_all=encoder.learns_all)
        except Unfit as unfit:
            yield [], str(unfit)
            continue
        made = []
        for example in examples:
            ids = [
                np.array([eos_id]) if t is END and eos_id is not None else encode(t or PLAIN_END) for t, _ in example
            ]
            made.append(np.concatenate([i if learnt else ~i for i, (_, learnt) in zip(ids, example, strict=True)]))
        is_text = all(learnt for example in examples for _, learnt in example)
        idle = not is_text and any(not (ids[1:] >= 0).any() for ids in made)
        yield ([], "has nothing to learn once it is encoded") if idle else (made, None)


@pytest.mark.parametrize("kind", ["text", "completion", "chat", "preference", "table", "plain"])
@pytest.mark.parametrize("learns_all", [False, True], ids=["", "all"])
def test_a_source_becomes_what_its_rows_become_one_by_one(
    tmp_path: Path, tokenizer: Tokenizer, kind: str, learns_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(encoding, "CHARACTERS_AT_ONCE", 80_000)
    part = Corpus.of_one(source_file(a_source(tmp_path, kind))).parts[0]
    encoder = Encoder(tokenizer, learns_all)
    found = encoder.tokens(part)
    rows = list(row_by_row(encoder, part))
    plain = [ids for made, _ in rows for ids in made]
    assert found.stored.tobytes() == np.concatenate(plain).astype(np.int32).tobytes()
    assert found.starts.tolist() == np.cumsum([0, *map(len, plain)]).tolist()
    bad = [(number, reason) for number, (_, reason) in enumerate(rows, 1) if reason]
    assert found.told["num_bad_rows"] == len(bad)
    assert [tuple(item) for item in found.told["bad_rows"]] == bad[:20]
    assert (found.told["num_rows"], found.told["num_examples"]) == (len(rows), len(plain))


def test_rows_that_teach_nothing_once_they_are_encoded_are_left_out_with_their_numbers(tmp_path: Path) -> None:
    """A conversation whose only answer has its first and only token at the very beginning."""
    template = "{% for m in messages %}{{ m.content if m.role == 'assistant' }}{% endfor %}"
    path = tmp_path / "rows.jsonl"
    turns = [["q", "A"], ["q", "abc"], ["q", "B"]]
    said = [[{"role": r, "content": c} for r, c in zip(("user", "assistant"), turn, strict=True)] for turn in turns]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
    part = Corpus.of_one(source_file(path)).parts[0]
    tokenizer = pretrained(like_gpt2(), template)
    found = Encoder(tokenizer).tokens(part)
    rows = list(row_by_row(Encoder(tokenizer), part))
    assert found.told["bad_rows"] == [[n, reason] for n, (_, reason) in enumerate(rows, 1) if reason]
    assert found.num_examples == sum(len(made) for made, _ in rows)


def texts_of_scraps(chance: random.Random) -> list[str]:
    scraps = [*"ab zZ1 2 \n\n\t\r.,!'’é \u00a0\u2003\u3000\u200b\x1c\x1f\x0b\x85\u2028\u0301漢字🙂\ufffe"]
    scraps += ["<|im_end|>", "'re", "<|user|>", "\n ", "12", " \u0301", "\u0301 "]
    return ["".join(chance.choices(scraps, k=chance.randint(0, 30))) for _ in range(chance.randint(0, 8))]


def each(encoded: Encoded) -> list[list[int]]:
    begins = encoded.starts.tolist()
    return [encoded.ids[begin:end].tolist() for begin, end in pairwise(begins)]


def test_a_batch_is_encoded_as_each_text_by_itself(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(7)
    for _ in range(100):
        monkeypatch.setattr(bpe, "_PIECE_CHARS", chance.choice([1, 8, 99]))
        texts = texts_of_scraps(chance)
        if isinstance(tokenizer, CharacterTokenizer):
            texts = [text for text in texts if set(text) <= set(tokenizer.characters)]
        assert each(tokenizer.encode_batch(texts)) == [tokenizer.encode(text).tolist() for text in texts], texts


@pytest.mark.parametrize("name", ["bpe", "like_gpt2"])
def test_half_a_character_is_in_no_text_of_a_batch(name: str) -> None:
    with pytest.raises(GenerationError, match="half a character at place 1"):
        TOKENIZERS[name]().encode_batch(["fine", "x\ud800"])


def test_characters_that_were_never_seen_are_named() -> None:
    with pytest.raises(GenerationError, match="never seen 2 of the text's characters: 'y' 'z'"):
        CharacterTokenizer.of_text("abc").encode_batch(["ab", "zy"])


def test_a_tokenizer_that_truncates_by_itself_loses_nothing() -> None:
    short = like_gpt2()
    short.enable_truncation(3)
    short.enable_padding(length=50)
    tokenizer = pretrained(short)
    text = " ".join(PARAGRAPHS[:3])
    assert each(tokenizer.encode_batch([text, "a"])) == [tokenizer.encode(t).tolist() for t in (text, "a")]
    assert len(each(tokenizer.encode_batch([text]))[0]) > 50


def test_a_batch_of_rows_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    add = encoding.TokenWriter.add
    monkeypatch.setattr(
        encoding.TokenWriter,
        "add",
        lambda self, stored, lengths: (added.append(len(lengths)), add(self, stored, lengths)),
    )
    part = Corpus.of_one(source_file(a_source(tmp_path, "completion"))).parts[0]
    Encoder(TOKENIZERS["bpe"]()).tokens(part)
    assert len(added) == 1
    assert added[0] > 200


def told_of(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    return Encoder(tokenizer).tokens(Corpus.of_one(source_file(path)).parts[0]).told


def fewer_embeddings() -> PretrainedTokenizer:
    """As when somebody has added a token and left the model as it was."""
    tokenizer = pretrained(like_gpt2(AddedToken("<|more|>", special=True)))
    tokenizer.vocab_size -= 1
    return tokenizer


def test_a_row_with_a_token_that_the_model_has_not_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a", "completion": f"b{more}"} for more in ("", "<|more|>", " c")]
    path.write_text("\n".join(map(json.dumps, rows)))
    tokenizer = fewer_embeddings()
    told = told_of(path, tokenizer)
    has = f"has tokens that its tokenizer knows and the model does not, which has {tokenizer.vocab_size} embeddings"
    assert (told["bad_rows"], told["num_examples"], told["num_rows"]) == ([[2, has]], 2, 3)


def test_a_prompt_with_a_token_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(GenerationError, match=r"the model does not, .* the first is '<\|more\|>'"):
        fewer_embeddings().encode("a<|more|>")


def test_a_row_that_is_refused_while_encoding_has_the_number_of_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"text": "a"}\n\n\n{"text": "<|more|>"}\n{"nothing": 1}\n')
    assert [number for number, _ in told_of(path, fewer_embeddings())["bad_rows"]] == [5, 6]


def test_the_library_never_holds_more_than_a_part_of_a_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it says of one takes a hundred times what its ids do."""
    given: list[int] = []
    monkeypatch.setattr("core.tokens.tokenizer.os.cpu_count", lambda: 2)

    class Watched:
        def encode_batch_fast(self, texts: list[str], **how: Any) -> Any:
            given.append(sum(map(len, texts)))
            return library_of.encode_batch_fast(texts, **how)

    tokenizer = pretrained(like_gpt2())
    library_of = tokenizer.tokenizer.backend_tokenizer
    monkeypatch.setattr(type(tokenizer.tokenizer), "backend_tokenizer", Watched())
    path = tmp_path / "text.txt"
    path.write_text(TEXT * 50)
    told_of(path, tokenizer)
    assert sum(given) == 50 * len(TEXT)
    assert max(given) <= 1 << 19


def begun(template: str | None = None) -> PretrainedTokenizer:
    """As of a Llama: its library puts a token before each text."""
    tokenizer = like_gpt2(AddedToken("<s>", special=True, normalized=False))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    found = pretrained(tokenizer, template)
    found.tokenizer.bos_token = "<s>"
    return found


def test_each_row_begins_as_the_base_expects(tmp_path: Path) -> None:
    tokenizer = begun()
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert bos is not None
    a, b, c = (int(tokenizer.encode(letter)[0]) for letter in "abc")
    rows = {
        "text": ({"text": "a"}, [bos, a, eos]),
        "completion": ({"prompt": "a", "completion": "b"}, [~bos, ~a, b, eos]),
        "written": ({"prompt": "<s>a", "completion": "b"}, [~bos, ~a, b, eos]),
        "answer": ({"prompt": "", "completion": "b"}, [bos, b, eos]),
        "preference": ({"prompt": "a", "chosen": "b", "rejected": "c"}, [~bos, ~a, b, eos, ~bos, ~a, c, eos]),
    }
    for name, (row, expected) in rows.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text(json.dumps(row))
        found = Encoder(tokenizer).tokens(Corpus.of_one(source_file(path)).parts[0])
        assert found.stored.tolist() == expected, name


def test_what_a_template_writes_and_what_a_text_runs_on_with_begin_as_they_say(tmp_path: Path) -> None:
    chat, text = tmp_path / "chat.jsonl", tmp_path / "text.md"
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}))
    text.write_text("a")
    tokenizer = begun(CHAT)
    for path in (chat, text):
        found = Encoder(tokenizer).tokens(Corpus.of_one(source_file(path)).parts[0]).stored
        assert tokenizer.bos_id not in np.where(found < 0, ~found, found)
    # Without a template of its own, it is a text like others.
    assert ~Encoder(begun()).tokens(Corpus.of_one(source_file(chat)).parts[0]).stored[0] == begun().bos_id


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_most_texts_begin_with_themselves(name: str) -> None:
    assert TOKENIZERS[name]().beginning("a") == []
