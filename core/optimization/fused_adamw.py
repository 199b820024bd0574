"""AdamW in one pass over the memory, as it is where nothing compiles it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import AdamW


class FusedAdamW(AdamW):
    """torch's fused AdamW to the last bit, without what torch puts around it for its compiler's sake.

    That imports the compiler with the first optimizer, which takes nearly as long as torch itself.
    """

    def __init__(self, params: Any, **given: Any) -> None:
        super().__init__(params, fused=True, **given)

    add_param_group = inspect.unwrap(AdamW.add_param_group)
    zero_grad = inspect.unwrap(AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(AdamW.step))
