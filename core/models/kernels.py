"""Parts of transformers' models that torch has one kernel for, put in place of the many that they are written with."""

from __future__ import annotations

from torch import nn


def take_kernels(model: nn.Module) -> None:
    """GELU by its tanh in one pass: the same function, rounded once and not after each of eight operations.

    A checkpoint does not know: neither has weights.
    """
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in model.modules():
        for name, part in list(module.named_children()):
            if type(part) in (NewGELUActivation, FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
