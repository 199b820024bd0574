"""Frozen weights in four bits: NF4 in blocks of 64 numbers, whose scales are kept in eight bits.

The numbers are made by bitsandbytes, the layer is our own. Its `Linear4bit` casts biases in place, does not follow
autocast, and on processors with bf16 packs its weights anew once it is asked without gradients, in a way that no
gradient passes any more. Its kernel for CPUs unpacks rows as if each began with a block, which is wrong where their
length is no multiple of 64. So a matrix is a list of whole blocks here, and unpacked whenever it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import ConfigError
from core.libraries import import_bitsandbytes
from core.models.blocks import blocks_of, linear_kinds

BLOCK = 64
"""Numbers that share a scale."""

SCALE_BLOCK = 256
"""Scales that share one of their own."""

_CHUNK = BLOCK << 16
"""Numbers that are packed at once."""


class FourBitLinear(nn.Linear):
    """A linear layer whose matrix is packed and does not train.

    Args:
        in_features: As of the layer whose place it takes.
        out_features: Likewise.
        bias: Likewise; it stays as it is.
        inputs_first: Whether that one kept its matrix as (in, out).

    It has no matrix at first, only its shape. See `pack`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: nn.Parameter | None,
        *,
        inputs_first: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.inputs_first = in_features, out_features, inputs_first
        num_blocks = -(-in_features * out_features // BLOCK)

        def empty(kind: torch.dtype, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=kind, device="meta"), requires_grad=False)

        self.weight = empty(torch.uint8, num_blocks, BLOCK // 2)
        self.scales = empty(torch.uint8, num_blocks)
        self.scales_of_scales = empty(torch.float32, -(-num_blocks // SCALE_BLOCK))
        self.mean_scale = empty(torch.float32)
        self.levels = empty(torch.float32, 256)
        self.register_parameter("bias", bias)

    @torch.no_grad()
    def pack(self, weight: Tensor) -> None:
        """Take a matrix, (out, in), or (in, out) if inputs come first, of any floating-point type.

        The same bits come of it with any number of threads.
        """
        from bitsandbytes.functional import quantize_blockwise

        flat = (weight.T if self.inputs_first else weight).reshape(-1)
        packed, scales = [], []
        for chunk in torch.split(flat, _CHUNK):
            whole = F.pad(chunk.float(), (0, -chunk.numel() % BLOCK))
            bits, found = torch.ops.bitsandbytes.quantize_4bit.default(whole, BLOCK, "nf4", torch.uint8)
            packed.append(bits.view(-1, BLOCK // 2))
            scales.append(found)
        together = torch.cat(scales)
        # In double precision, so that it does not depend on the order in which they are added.
        mean = together.double().mean().float()
        in_bytes, state = quantize_blockwise(together - mean, blocksize=SCALE_BLOCK)
        kept = {"weight": torch.cat(packed), "scales": in_bytes, "scales_of_scales": state.absmax}
        for name, value in {**kept, "mean_scale": mean, "levels": state.code}.items():
            setattr(self, name, nn.Parameter(value, requires_grad=False))

    def dequantize(self, kind: torch.dtype = torch.float32) -> Tensor:
        """The matrix as it computes, (out, in)."""
        ops = torch.ops.bitsandbytes
        unpacked = ops.dequantize_blockwise.default(
            self.scales, self.scales_of_scales, self.levels, SCALE_BLOCK, torch.float32
        )
        # A row for each block.
        shape = (self.scales.numel(), BLOCK)
        blocks = ops.dequantize_4bit.default(self.weight, unpacked + self.mean_scale, BLOCK, "nf4", shape, kind)
        found: Tensor = blocks.view(-1)[: self.in_features * self.out_features]
        return found.view(self.out_features, self.in_features)

    @property
    def W_q(self) -> Tensor:
        """The packed matrix; where there is one by this name, peft asks for `dequantize`, which DoRA takes."""
        return self.weight

    def forward(self, input: Tensor) -> Tensor:
        """As of a linear layer, (…, in) → (…, out), under autocast in its type."""
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        product: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]  # torch's own
        return product


class _Product(torch.autograd.Function):
    """Unpacks the matrix on the way and again on the way back, so that it is never kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: FourBitLinear) -> Tensor:
        """(…, in) → (…, out)."""
        ctx.layer = layer
        bias = None if layer.bias is None else layer.bias.to(input.dtype)
        return F.linear(input, layer.dequantize(input.dtype), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """(…, out) → (…, in)."""
        return gradient @ ctx.layer.dequantize(gradient.dtype), None


def linear_in_blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """What is kept in four bits, by name: the linear layers of the blocks; not the head, nor the embeddings."""
    within = {id(module) for module in blocks_of(model).modules()}
    for name, module in model.named_modules():
        if id(module) in within and isinstance(module, linear_kinds()):
            yield name, module


def check_can_be_packed(model: nn.Module) -> None:
    """Import what packs, and refuse a model whose blocks would stay nearly as large as they are.

    Raises:
        ConfigError: bitsandbytes is not installed, or the model keeps its experts in other layers than linear ones.
    """
    import_bitsandbytes("quantization", "nf4", "none")
    if any(parameter.dim() > 2 for parameter in blocks_of(model).parameters()):
        said = "'nf4' packs linear layers, and this model keeps its experts in others: use 'none'"
        raise ConfigError([("quantization", said)])


def take_place(model: nn.Module, name: str, weight: Tensor | None = None) -> None:
    """Put a layer in four bits where the linear one called `name` is.

    Args:
        weight: What it is to pack, after `check_can_be_packed`; None leaves it without memory.
    """
    there: Any = model.get_submodule(name)
    inputs_first = not isinstance(there, nn.Linear)
    in_features, out_features = there.weight.shape if inputs_first else there.weight.shape[::-1]
    layer = FourBitLinear(in_features, out_features, there.bias, inputs_first=inputs_first)
    if weight is not None:
        layer.pack(weight)
    model.set_submodule(name, layer)


def num_weights(model: nn.Module) -> tuple[int, int]:
    """Numbers in a model's weights, and those of them that train; a packed matrix counts as what it stands for."""
    count: dict[int, tuple[int, bool]] = {}
    for module in model.modules():
        own = module.named_parameters(recurse=False)
        if isinstance(module, FourBitLinear):
            count[id(module)] = module.in_features * module.out_features, False
            own = ((name, parameter) for name, parameter in own if name == "bias")
        count |= {id(parameter): (parameter.numel(), parameter.requires_grad) for _, parameter in own}
    return sum(size for size, _ in count.values()), sum(size for size, trains in count.values() if trains)
