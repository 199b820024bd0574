"""A small model from scratch over characters: 4 blocks of 4 heads, width 128, block 64, batch 12.

Ours under bf16 and in fp32 against a plain loop over transformers' GPT-2 of that shape, which stands in for nanoGPT, in
fp32 as that comes and under bf16 autocast with fused AdamW.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from _alternate import Contestant, alternate, ceilings
from _contestants import TEXT, Ours, PlainLoop
from _row import print_row

ROUNDS = 7
UPDATES = 100
SHAPE = {"batch_size": 12, "block_size": 64}
MODEL = {"n_embd": 128, "n_head": 4, "n_layer": 4}
RATE = 1e-3


def main() -> None:
    """Measure and print."""
    settings = {"model_type": "from_scratch", "learning_rate": RATE, **MODEL, **SHAPE}
    makers: dict[str, Callable[[], Contestant]] = {
        "ours": partial(Ours, settings={**settings, "precision": "bf16"}),
        "ours_fp32": partial(Ours, settings=settings),
        "plain_fp32": partial(plain, bf16=False),
        "plain_bf16": partial(plain, bf16=True),
    }
    tokens = SHAPE["batch_size"] * SHAPE["block_size"]
    print_row("small_model", **alternate(makers, rounds=ROUNDS, updates=UPDATES, tokens=tokens), ceilings=ceilings())


def plain(*, bf16: bool) -> PlainLoop:
    """The same shape, without dropout, over the same characters."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    text = TEXT.read_text()
    characters = {character: number for number, character in enumerate(sorted(set(text)))}
    dropouts: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = GPT2Config(vocab_size=len(characters), n_positions=SHAPE["block_size"], **MODEL, **dropouts)
    ids = torch.tensor([characters[character] for character in text])
    return PlainLoop(GPT2LMHeadModel(config), ids, rate=RATE, bf16=bf16, **SHAPE)


if __name__ == "__main__":
    main()
