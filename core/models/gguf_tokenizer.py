"""The tokenizer that a GGUF file keeps among its settings: byte-level byte pairs, cut as its family cuts words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.bases.gguf_file import GgufHeader
from core.errors import ModelUnavailable
from core.models.folder import unusable

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that stand for themselves, wherever they are in a text; those of control are no text."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = frozenset({"default", "gpt-2", "gpt2"})
_DIGIT_BY_DIGIT = frozenset({"smollm"})
_PATTERNS = {
    "qwen2": _WORDS % r"\p{N}",
    "llama-bpe": _WORDS % r"\p{N}{1,3}",
    "llama3": _WORDS % r"\p{N}{1,3}",
    "llama-v3": _WORDS % r"\p{N}{1,3}",
}
"""What a file calls its way to cut words → the expression."""

_BEGUN = frozenset({"llama-bpe", "llama3", "llama-v3"})
"""Families that put a token before each text, unless the file says otherwise."""


def tokenizer_of(folder: Path, header: GgufHeader) -> Any:
    """A `PreTrainedTokenizerFast` with the file's tokens, merges, special tokens and template for conversations.

    Raises:
        ModelUnavailable: it keeps another kind of tokenizer, or none that can be.
    """
    from transformers import PreTrainedTokenizerFast

    said: dict[str, Any] = {
        name: header.settings.get(f"tokenizer.ggml.{name}") for name in ("model", "pre", "tokens", "merges")
    }
    if said["model"] != "gpt2":
        raise _another(folder, f"is of the kind {said['model']!r:.80}")
    tokens, kinds = said["tokens"], header.settings.get("tokenizer.ggml.token_type")
    if not _are_texts(tokens) or not _are_texts(said["merges"]):
        raise unusable(folder, "its GGUF file has a tokenizer without tokens or merges")
    if len(set(tokens)) < len(tokens):
        raise unusable(folder, "its GGUF file has a token twice")
    kinds = kinds if isinstance(kinds, list) and len(kinds) == len(tokens) else [1] * len(tokens)
    try:
        made = _byte_pairs(folder, said["pre"] or "default", tokens, said["merges"])
        made.add_special_tokens(_added(tokens, kinds, CONTROL))
        made.add_tokens(_added(tokens, kinds, USER_DEFINED))
    except (ValueError, TypeError) as error:
        raise unusable(folder, f"its GGUF file's tokenizer cannot be read: {error}") from None
    special = _special_tokens(header, tokens)
    if "bos_token" in special and header.settings.get("tokenizer.ggml.add_bos_token", said["pre"] in _BEGUN) is True:
        _begin_with(made, special["bos_token"])
    found = PreTrainedTokenizerFast(tokenizer_object=made, **special)
    template = header.settings.get("tokenizer.chat_template")
    if isinstance(template, str):
        found.chat_template = template
    return found


def _byte_pairs(folder: Path, pre: Any, tokens: list[str], merges: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pairs = [merge.partition(" ")[::2] for merge in merges]
    cutter = _cutter(pre)
    if cutter is None:
        raise _another(folder, f"cuts words in a way called {pre!r:.80}")
    try:
        made = Tokenizer(
            models.BPE(
                vocab={token: number for number, token in enumerate(tokens)},
                merges=pairs,
                # Llama 3 has words that no merge makes.
                ignore_merges=pre in _PATTERNS and pre != "qwen2",
            )
        )
    except Exception as error:  # The library raises no class of its own.
        raise ValueError(str(error)[:200]) from None
    if pre == "qwen2":
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = cutter
    made.decoder = decoders.ByteLevel()
    return made


def _begin_with(made: Any, token: str) -> None:
    from tokenizers.processors import Sequence, TemplateProcessing

    before = [] if made.post_processor is None else [made.post_processor]
    # The library reads a language there, in which any token may mean something: so it goes by another name.
    special = [{"id": "B", "ids": [made.token_to_id(token)], "tokens": [token]}]
    made.post_processor = Sequence([*before, TemplateProcessing(single="B $A", special_tokens=special)])


def _cutter(pre: Any) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre in _GPT2:
        return ByteLevel(add_prefix_space=False)
    if pre in _DIGIT_BY_DIGIT:
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if pre in _PATTERNS:
        words = Split(Regex(_PATTERNS[pre]), behavior="isolated")
        return Sequence([words, ByteLevel(add_prefix_space=False, use_regex=False)])
    return None


def _added(tokens: list[str], kinds: list[Any], kind: int) -> list[Any]:
    from tokenizers import AddedToken

    return [
        AddedToken(token, normalized=False, special=kind == CONTROL)
        for token, found in zip(tokens, kinds, strict=True)
        if found == kind
    ]


def _special_tokens(header: GgufHeader, tokens: list[str]) -> dict[str, str]:
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    found = {}
    for name, theirs in names.items():
        number = header.settings.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(number) is int and 0 <= number < len(tokens):
            found[name] = tokens[number]
    return found


def _are_texts(found: Any) -> bool:
    return isinstance(found, list) and all(isinstance(text, str) for text in found)


def _another(folder: Path, why: str) -> ModelUnavailable:
    return unusable(
        folder, f"its GGUF file's tokenizer {why}, which is not read: put the model's own tokenizer.json beside it"
    )
