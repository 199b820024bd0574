"""AdamW as it is where nothing compiles it."""

from __future__ import annotations

import inspect

import torch
from torch.optim import AdamW


class PlainAdamW(AdamW):
    """The same numbers to the last bit, without what torch puts around them for its compiler's sake.

    That imports the compiler with the first optimizer, which takes nearly as long as torch itself.
    """

    add_param_group = inspect.unwrap(AdamW.add_param_group)
    zero_grad = inspect.unwrap(AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(AdamW.step))
