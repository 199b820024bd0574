"""What takes less time than the parts that transformers' models are written with, put in their place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.models.attention import attend_in_products, is_short

_ATTENTION = "short_or_sdpa"
"""What transformers is to call ours."""


def take_kernels(model: Any) -> None:
    """GELU by its tanh in one pass: the same function, rounded once and not after each of eight operations.

    And attention in products where that is sooner done, see `core.models.attention`. A checkpoint does not know of
    either: they have no weights.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.activations import FastGELUActivation, NewGELUActivation
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register(_ATTENTION, _attend)
        AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
        model.config._attn_implementation = _ATTENTION

    for module in model.modules():
        for name, part in list(module.named_children()):
            if type(part) in (NewGELUActivation, FastGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """As transformers calls for attention: (B, H, T, D) of queries, keys and values, the answer is (B, T, H, D)."""
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    asks_more = any(more.get(name) is not None for name in ("softcap", "position_bias", "cache", "s_aux"))
    if asks_more or not is_short(query, key):
        given = {"dropout": dropout, "scaling": scaling, "is_causal": is_causal}
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **given, **more)
        return found
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    looks_back = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mixed = attend_in_products(query, key, value, attention_mask, dropout, scaling, is_causal=looks_back)
    return mixed.transpose(1, 2).contiguous(), None
