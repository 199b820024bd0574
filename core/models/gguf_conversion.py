"""A GGUF file as a Hugging Face folder, made once: unpacking it anew for every run would take as long each time.

`python -m core.models.gguf_conversion FOLDER TARGET ORIGIN` does it in a process of its own.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from core.errors import RatchetError, StorageError
from core.machine import disk
from core.models.causal_lm import CausalLM
from core.models.folder import WEIGHTS

_HALVES = (torch.bfloat16, torch.float16)
_SMALL_FILES_BYTES = 32 << 20


def convert_gguf(folder: Path, target: Path, origin: str) -> None:
    """Write `config.json`, `model.safetensors`, the tokenizer's files, and a README that says where they are from.

    The new folder's model says what the old one's does, to the last bit.

    Args:
        folder: Has one GGUF file.
        target: Is there, and empty.
        origin: What the weights are, for the README: "dequantized from …".

    Raises:
        ModelUnavailable: the file cannot be used.
        DiskFull, StorageError: the disk refused it.
    """
    from safetensors.torch import save_file

    model = CausalLM(folder, mapped=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.tensors().items()}
    narrowest = exact_type(tensors.values())
    try:
        disk.check_room(target, sum(t.numel() for t in tensors.values()) * narrowest.itemsize + _SMALL_FILES_BYTES)
        converted = {name: tensor.to(narrowest) for name, tensor in tensors.items()}
        save_file(converted, target / WEIGHTS, metadata={"format": "pt"})
        model.network.config.dtype = narrowest
        model.describe(target)
        model.tokenizer.save(target)
        # The library keeps what it writes to its owner; these are for whoever may read the others.
        shutil.copymode(target / "config.json", target / WEIGHTS)
        (target / "README.md").write_text(f"# {target.name}\n\nThe weights are {origin}.\n")
        for path in target.iterdir():
            disk.sync_file(path)
    except Exception as error:
        if disk.refusal_of(error, target.name) is None:
            raise
        raise StorageError(f"the model could not be written below the models root: {error}") from None


def exact_type(tensors: Iterable[Tensor]) -> torch.dtype:
    """The narrowest type that has all values as they are: bf16, fp16, else fp32.

    Values of a quantized file are products of a scale and a small number, which a half cannot hold as a rule. Rounding
    them would be a second loss on top of the file's own, to save space on a disk.
    """
    kept = list(_HALVES)
    for tensor in tensors:
        kept = [half for half in kept if torch.equal(tensor.to(half).float(), tensor)]
    return kept[0] if kept else torch.float32


def main(arguments: list[str]) -> int:
    """For another process: 0, or 1 with one sentence on standard error."""
    folder, target, origin = arguments
    try:
        convert_gguf(Path(folder), Path(target), origin)
    except RatchetError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
