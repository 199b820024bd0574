"""Source → tokens → batch `i`, where a batch is a pure function of the seed and its index.

Nothing here has a position to lose: a run that is killed at step 1,234 asks for batch 1,234 when it comes back.

Shapes: B batch, T block_size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.config import TrainingConfig
from core.sources.files import check_length
from core.sources.files import load_raw_text as load_raw_text
from core.tokens.tokenizer import CharacterTokenizer, TokenIds, Tokenizer

Split = Literal["train", "val"]
Tokens = NDArray[np.int32]

VALIDATION_PART = 0.1
STREAMS = {
    "train": 0,
    "val": 1,
    "train_estimate": 2,
    "order of rows": 3,
    "kept back": 4,
    "train of several": 5,
    "val of several": 6,
    "train_estimate of several": 7,
    "rows of several": 8,
    "evaluated train of several": 9,
    "evaluated val of several": 10,
}
"""Whatever is drawn, and the number that keeps it apart from all else."""


@dataclass(frozen=True, slots=True)
class TokenData:
    """A source as token ids, in its training part and its validation part, each of shape (num_tokens,)."""

    train: Tokens
    val: Tokens
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Everything that training takes from a source."""

    tokenizer: Tokenizer
    tokens: TokenData

    @property
    def encode(self) -> Callable[[str], TokenIds]:
        """Text → ids."""
        return self.tokenizer.encode

    @property
    def decode(self) -> Callable[[object], str]:
        """Ids → text."""
        return self.tokenizer.decode

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self.tokenizer.vocab_size


def prepare_data_and_tokenizer(
    config: TrainingConfig, raw_text: str, model_type: str = "from_scratch", tokenizer: Tokenizer | None = None
) -> PreparedData:
    """The source in character tokens, for a model from scratch.

    Args:
        tokenizer: A resumed run's; without one the alphabet is the text's own.

    Raises:
        SourceTooShort: fewer than block_size + 1 characters.
    """
    assert model_type == "from_scratch", "a pretrained model brings a tokenizer of its own: see prepare_gpt2_data"
    chosen = tokenizer or CharacterTokenizer.of_text(raw_text)
    return PreparedData(chosen, split_tokens(chosen.encode(raw_text), config.block_size))


def prepare_gpt2_data(encode_fn: Callable[[str], TokenIds], raw_text: str, block_size: int = 1) -> TokenData:
    """The source in a pretrained model's tokens.

    Raises:
        SourceTooShort: fewer than block_size + 1 tokens.
    """
    return split_tokens(encode_fn(raw_text), block_size)


def split_tokens(ids: TokenIds | Tokens, block_size: int) -> TokenData:
    """The first nine tenths train, the last tenth validates; each part holds at least one whole block.

    A text too short for two parts is both: better a run with a warning than none.
    """
    check_length(len(ids), block_size)
    tokens = ids.astype(np.int32, copy=False)
    need = block_size + 1
    if len(tokens) < 2 * need:
        said = f"the source has only {len(tokens)} tokens, so validation runs on the training text itself"
        return TokenData(tokens, tokens, said)
    num_val = max(int(len(tokens) * VALIDATION_PART), need)
    return TokenData(tokens[:-num_val], tokens[-num_val:])


def get_batch(
    split: Split,
    train_data: Tokens,
    val_data: Tokens,
    batch_size: int,
    block_size: int,
    device: str | torch.device = "cpu",
    *,
    index: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Batch `index` of a part: inputs and the tokens that follow them, each (B, T) int64."""
    tokens = train_data if split == "train" else val_data
    return batch(tokens, split, index, seed, batch_size, block_size, device)


def batch(
    tokens: Tokens,
    stream: str,
    index: int,
    seed: int,
    batch_size: int,
    block_size: int,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """As `get_batch`, over any tokens; streams of different names draw independently."""
    starts_B = window_starts(len(tokens), stream, index, seed, batch_size, block_size)
    window_BT = tokens[starts_B[:, None] + np.arange(block_size + 1)]
    both = torch.from_numpy(window_BT.astype(np.int64))
    return both[:, :-1].to(device), both[:, 1:].to(device)


def window_starts(
    num_tokens: int, stream: str, index: int, seed: int, batch_size: int, block_size: int
) -> NDArray[np.int64]:
    """Where the rows of a batch begin, shape (B,).

    Philox is counter-based: the index is a word of its counter, so batch `i` costs the same for every `i`, and the word
    below it leaves room for 2⁶⁴ draws before two batches could overlap.
    """
    bits = np.random.Philox(key=[seed, STREAMS[stream]], counter=[0, index, 0, 0])
    return np.random.Generator(bits).integers(0, num_tokens - block_size, size=batch_size)
