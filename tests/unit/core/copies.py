"""How much memory a piece of code takes: a promise of no needless copy is one that can be counted."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Copies(TorchDispatchMode):
    """Counts the bytes of every tensor that is made inside of it, views left out."""

    num_bytes = 0
    largest = 0
    """Bytes of the largest one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {tensor.data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        if isinstance(made, torch.Tensor) and made.data_ptr() not in given:
            self.num_bytes += made.nbytes
            self.largest = max(self.largest, made.nbytes)
        return made
