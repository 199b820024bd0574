"""How much of the machine's arithmetic a run uses: model FLOPs utilization (MFU), as the PaLM paper (2022) counts it.

A weight of a matrix costs 2 FLOPs for each token on the way forward, 2 on the way back, and 2 more if it trains;
attention 4 for each layer, number of its width and token it may see, three times over. What is computed twice, looked
up or added costs nothing, so this is what the model needs and not what was spent.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from core.models import LanguageModel
from core.models.blocks import blocks_of

PEAK_FLOPS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 6000 Ada": 364e12,
    "RTX 5090": 210e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense products in 16 bits that add up in 32, by a part of the device's name, from the makers' data sheets.

The first name that fits counts.
"""

MEASURED_SIDE = {"cpu": 512, "cuda": 4096}
"""Of the square matrices by which a device without an entry is measured: a few hundredths of a second in all."""


@dataclass(slots=True)
class Utilization:
    """What a run needs for a token, against what its device can do.

    Args:
        flops_per_token: See `flops_per_token`.
        device: Where it trains.
        dtype: What products are computed in.
        world_size: Ranks, each on a device of its own or its part of the cores.
    """

    flops_per_token: float
    device: str
    dtype: torch.dtype
    world_size: int = 1

    def at(self, tokens_per_second: float) -> float | None:
        """The part of the peak, from 0 to about 1; None where no peak can be found. It is found at the first call."""
        peak = peak_flops(self.device, self.dtype)
        return None if peak is None else round(self.flops_per_token * tokens_per_second / (peak * self.world_size), 4)


def flops_per_token(model: LanguageModel, length: int, method: str = "lm") -> float:
    """Floating-point operations of one update for each of its tokens.

    Args:
        length: Tokens in a row.
        method: `dpo` asks the base, too: one more way forward.
    """
    forward, trains = _matrix_weights(model)
    attention = sum(_attention_width(block, _width(model)) for block in blocks_of(model)) * length
    ways = 3 if method == "dpo" else 2
    return 2.0 * ways * forward + 2.0 * trains + 4.0 * (ways + 1) * attention


@cache
def peak_flops(device: str, dtype: torch.dtype) -> float | None:
    """FLOPs per second that a device can do: by its data sheet, or as measured with a matrix product."""
    kind = torch.device(device).type
    if kind == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for part, peak in PEAK_FLOPS.items():
            # A laptop's is another chip by the same name.
            if re.search(rf"(?<![A-Za-z0-9]){part}(?![A-Za-z0-9])", name) and "Laptop" not in name:
                return peak
    try:
        return _measured_flops(device, dtype, MEASURED_SIDE.get(kind, 1024))
    except (RuntimeError, MemoryError):
        # No memory is left for it, or no such product is known there: a figure to look at must not end a run.
        return None


def _measured_flops(device: str, dtype: torch.dtype, side: int) -> float:
    # Ones, not random numbers: no generator of the run moves.
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    took = []
    with torch.no_grad():
        for _ in range(4):
            begun = time.perf_counter()
            # Read, so that it is done, whatever the device does beside us.
            float((matrix @ matrix)[0, 0])
            took.append(time.perf_counter() - begun)
    return 2.0 * side**3 / min(took)


def _matrix_weights(model: LanguageModel) -> tuple[float, float]:
    """Weights that each token is multiplied with, and those of them that train."""
    forward = trains = 0.0
    experts = _part_of_experts(model)
    for module in blocks_of(model).modules():
        for parameter in module.parameters(recurse=False):
            if parameter.dim() < 2:
                continue
            # Quantized weights are packed: the layer knows its measures.
            size = module.in_features * module.out_features if isinstance(module, nn.Linear) else parameter.numel()
            count = float(size) * (experts if parameter.dim() > 2 else 1.0)
            forward += count
            trains += count * parameter.requires_grad
    head = float(model.vocab_size * _width(model))
    return forward + head, trains + head * _head_trains(model)


def _part_of_experts(model: nn.Module) -> float:
    """Of all experts of a layer, those that see a token."""
    config = getattr(getattr(model, "network", None), "config", None)
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    return getattr(config, "num_experts_per_tok", 1) / num_experts if num_experts else 1.0


def _width(model: LanguageModel) -> int:
    """Of what goes from block to block."""
    return max((part.embedding_dim for part in model.modules() if isinstance(part, nn.Embedding)), default=0)


def _head_trains(model: LanguageModel) -> bool:
    """Whether a matrix of all tokens does: the head, or the embeddings that are one."""
    inside = {id(parameter) for parameter in blocks_of(model).parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside and parameter.dim() == 2]
    return any(parameter.requires_grad for parameter in outside if parameter.shape[0] == model.vocab_size)


def _attention_width(block: nn.Module, width: int) -> int:
    """Heads times their width, which in some families is not the model's."""
    for name, module in block.named_modules():
        if name.endswith("q_proj") and hasattr(module, "out_features"):
            return int(module.out_features)
    return width
