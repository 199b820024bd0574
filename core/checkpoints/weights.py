"""Tensors from safetensors files, memory-mapped: a page is read when something first looks at it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from core.checkpoints.tensor_files import check_tensor_file
from core.errors import CheckpointCorrupt
from core.machine.disk import unreadable


def load_tensors(path: Path, device: str = "cpu", *, is_link_allowed: bool = False) -> dict[str, Tensor]:
    """The tensors of a file, looked through before the library sees it. On the CPU they are the file's own pages.

    What is written to them stays in memory; the file may be removed while they live, but not be written to.

    Raises:
        CheckpointCorrupt, CheckpointUnsafe, StorageError: said in one sentence.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_tensor_file(path, is_link_allowed=is_link_allowed)
    try:
        return dict(load_file(path, device=device))
    except OSError as error:
        raise unreadable(error, f"'{path.parent.name}/{path.name}' cannot be read") from None
    except SafetensorError as error:
        raise CheckpointCorrupt(f"'{path.parent.name}/{path.name}' cannot be read: {error}") from None
