"""Two updates of a model that is described on the command line, and the memory they took: a program of its own.

Prints the bytes at their peak beyond what was there before the model, imports and kernels warmed up included.
"""

from __future__ import annotations

import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

from core.config import TrainingConfig
from core.models import LanguageModel
from core.objectives import NextToken
from core.optimization.precision import Precision
from core.optimization.updates import build_optimizer, clip_gradients
from core.parts import build_model
from core.tokens.batches import Batch

PROCESS = Path("/proc/self")
VOCAB_SIZE = 4096


def train(config: TrainingConfig, model: LanguageModel) -> None:
    optimizer, precision = build_optimizer(config, model), Precision(config.precision, "cpu")
    model.train()
    for _ in range(2):
        ids_BT = torch.randint(0, model.vocab_size, (config.batch_size, config.block_size))
        optimizer.zero_grad(set_to_none=True)
        for _ in range(config.gradient_accumulation_steps):
            with precision.computing():
                loss = NextToken().loss(model, Batch(ids_BT, ids_BT, None, ids_BT.numel()))
            precision.backward(loss)
        clip_gradients(model, config)
        precision.update(optimizer)


def resident_bytes(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found
    return int(found[1]) * 1024


def main(given: dict[str, Any], warming: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    small = TrainingConfig(**{**given, **warming, "batch_size": 1, "block_size": 8})
    train(small, build_model(small, 50))
    gc.collect()
    config = TrainingConfig(**given)
    begin = resident_bytes("VmRSS")
    model = build_model(config, VOCAB_SIZE if config.tokenizer == "bpe" else 100)
    # While a base is read, its file's pages count as well.
    (PROCESS / "clear_refs").write_text("5")
    train(config, model)
    sys.stdout.write(f"{resident_bytes('VmHWM') - begin}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
