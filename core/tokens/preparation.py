"""From the sources of a run to its batches: which method they are for, what is kept back, what lies in which row."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import TrainingConfig
from core.data import STREAMS, VALIDATION_PART, split_tokens
from core.errors import SourceTooShort
from core.sources.corpus import Corpus, Part
from core.sources.rows import BadRow, ChatRow, PreferenceRow, place_in
from core.tokens.batches import Batches, Examples, Pairs, Which, Windows
from core.tokens.conversations import plainly
from core.tokens.encoding import Encoder
from core.tokens.packing import Packing, one_each, packed
from core.tokens.token_files import TokenFile
from core.tokens.tokenizer import PretrainedTokenizer


def prepare(
    corpus: Corpus, method: str, config: TrainingConfig, encoder: Encoder, block_size: int, *, may_pack: bool
) -> Batches:
    """The batches of a run.

    Args:
        method: What `core.sources.methods.method_of` said.
        encoder: With the model's tokenizer.
        block_size: Most tokens of a row.
        may_pack: Whether the model keeps examples apart that share a row.

    Raises:
        SourceError: there is not enough to learn from.
    """
    files = [encoder.tokens(part) for part in corpus.parts]
    names = [part.source.name for part in corpus.parts]
    weights = [part.weight for part in corpus.parts]
    told = [said for part, file in zip(corpus.parts, files, strict=True) for said in left_out(part, file.told)]
    told += [said for part in corpus.parts for said in without_template(part, encoder)]
    if method == "lm":
        texts = [split_tokens(file.stored, block_size) for file in files]
        windows = Windows(texts, weights, block_size, config.batch_size, config.seed)
        windows.warnings = [*told, *windows.warnings]
        return windows
    is_packed = method == "sft" and config.packing and may_pack
    packings = []
    for name, file in zip(names, files, strict=True):
        packing, said = _packings(name, file, block_size, is_packed, num_each=2 if method == "dpo" else 1)
        packings.append(packing)
        told += said
    if method == "sft" and config.packing and not may_pack:
        told.append("this model does not keep examples apart that share a row, so each has a row of its own")
    kind = Pairs if method == "dpo" else Examples
    return kind(files, packings, weights, block_size, config.batch_size, config.seed, is_packed, told)


def without_template(part: Part, encoder: Encoder) -> list[str]:
    """That conversations are written as nobody has taught the base to read them."""
    if encoder.render is not plainly or not isinstance(encoder.tokenizer, PretrainedTokenizer):
        return []
    row = next((row for row in part.rows() if not isinstance(row, BadRow)), None)
    if isinstance(row, ChatRow) or (isinstance(row, PreferenceRow) and not isinstance(row.prompt, str)):
        said = "has conversations, and the base model has no chat template: they are written as USER: … ASSISTANT: …"
        return [f"source '{part.source.name}' {said}, each turn a paragraph, so ask the model in the same way"]
    return []


def left_out(part: Part, told: dict[str, Any]) -> list[str]:
    """How many rows of a source could not be used, and why the first of them could not."""
    if not told["num_bad_rows"]:
        return []
    place = place_in(part.format)
    first = "; ".join(f"{place} {number} {reason}" for number, reason in told["bad_rows"][:3])
    return [f"{told['num_bad_rows']} of {told['num_rows']} rows of source '{part.source.name}' are left out: {first}"]


def _packings(
    name: str, file: TokenFile, block_size: int, is_packed: bool, num_each: int
) -> tuple[dict[Which, Packing], list[str]]:
    """The rows of both parts, and what the user should know about them.

    Args:
        num_each: Examples that belong together: 2 of a preference.
    """
    lengths = np.diff(file.starts) - 1
    long: list[int] = np.flatnonzero(lengths > block_size).tolist()
    lost = np.array([example for example in long if not _is_learnt(file, example, block_size)], dtype=np.int64)
    kept = np.setdiff1d(np.arange(file.num_examples // num_each), lost // num_each)
    if not len(kept):
        raise SourceTooShort(
            f"no example of source '{name}' has its answer within block_size {block_size}: give a larger block_size"
        )
    told = _told(name, lengths, block_size, len(lost))
    bits = np.random.Philox(key=[0, STREAMS["kept back"]])
    order = np.random.Generator(bits).permutation(kept)
    num_val = max(1, int(len(order) * VALIDATION_PART))
    parts: dict[Which, NDArray[np.int64]] = {"train": np.sort(order[num_val:]), "val": np.sort(order[:num_val])}
    if len(order) == 1:
        parts["train"] = parts["val"]
        told.append(f"source '{name}' has a single example, so validation runs on the training example itself")
    return {which: _laid(lengths, part, block_size, is_packed) for which, part in parts.items()}, told


def _laid(lengths: NDArray[np.int64], part: NDArray[np.int64], block_size: int, is_packed: bool) -> Packing:
    found = packed(np.minimum(lengths[part], block_size), block_size) if is_packed else one_each(part)
    return Packing(part[found.order], found.starts)


def _is_learnt(file: TokenFile, example: int, block_size: int) -> bool:
    """Whether an example has anything to learn where it will be cut."""
    begin = int(file.starts[example])
    return bool((file.stored[begin + 1 : begin + 1 + block_size] >= 0).any())


def _told(name: str, lengths: NDArray[np.int64], block_size: int, num_lost: int) -> list[str]:
    num_cut = int((lengths > block_size).sum()) - num_lost
    told = []
    if num_cut:
        told.append(f"{num_cut} of {len(lengths)} examples of '{name}' have more than {block_size} tokens and are cut")
    if num_lost:
        told.append(f"{num_lost} of {len(lengths)} examples of '{name}' have no answer within {block_size} tokens")
    return told
