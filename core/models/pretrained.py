"""A Hugging Face folder of GPT-2 as it comes from anywhere: its files are looked at, and nothing in it is obeyed.

transformers would follow what a folder asks for: an adapter's base elsewhere, code to import, kernels from the hub,
weights under another name. So of `config.json` only the model's shape is taken, weights are read here, and transformers
is given both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import CheckpointError, ModelUnavailable
from core.outside import read_plain
from core.weights import load_tensors

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 64 << 20

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)

_SHAPE = (
    "vocab_size",
    "n_positions",
    "n_embd",
    "n_layer",
    "n_head",
    "n_inner",
    "activation_function",
    "layer_norm_epsilon",
    "initializer_range",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "reorder_and_upcast_attn",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def load_gpt2(folder: Path, dropout: float = 0.0) -> Any:
    """The `GPT2LMHeadModel` of a folder in fp32; its weights are the pages of the folder's files wherever they can be.

    Args:
        dropout: Of embeddings, attention and residuals.

    Raises:
        ModelUnavailable: says what of the folder cannot be used.
    """
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    # A bar for weights that load in a blink would be the first line of every log.
    logging.disable_progress_bar()
    said = _config(folder)
    weights = _named_as_the_model(_weights(folder), said)
    _check_shape(folder, said, weights)
    drops = {"attn_pdrop": dropout, "embd_pdrop": dropout, "resid_pdrop": dropout}
    try:
        config = GPT2Config(**said, **drops, architectures=["GPT2LMHeadModel"])
        model, found = GPT2LMHeadModel.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise _unusable(folder, f"its config.json does not fit its weights: {_first_line(error)}") from None
    if missing := sorted(found["missing_keys"]):
        raise _unusable(folder, f"its weights lack {', '.join(missing[:3])}")
    return model


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer of a folder; `config` is its model's.

    Raises:
        ModelUnavailable: it has none, or none that can be read.
    """
    from transformers import AutoTokenizer

    there = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    for name in there:
        _read(folder, name, MAX_TOKENIZER_BYTES)
    if not {"tokenizer.json", "vocab.json"}.intersection(there):
        raise _unusable(folder, "it has no tokenizer.json, and no vocab.json and merges.txt")
    try:
        found = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # The tokenizers library raises no class of its own.
        raise _unusable(folder, f"its tokenizer cannot be read: {_first_line(error)}") from None
    # What it asked for is not passed on to those who may obey it.
    found.init_kwargs.pop("auto_map", None)
    return found


def _config(folder: Path) -> dict[str, Any]:
    """The shape that `config.json` tells."""
    try:
        said = json.loads(_read(folder, "config.json", MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        raise _unusable(folder, "its config.json is no JSON") from None
    kind = said.get("model_type") if isinstance(said, dict) else None
    if kind != "gpt2":
        raise _unusable(folder, f"its config.json says model_type {kind!r}, and it has to be 'gpt2'")
    if said.get("quantization_config"):
        raise _unusable(folder, "its weights are quantized")
    return {name: said[name] for name in _SHAPE if name in said}


def _weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name in _weight_files(folder):
        try:
            tensors = load_tensors(folder / name, is_link_allowed=_is_own_link(folder, name))
        except CheckpointError as error:
            raise _unusable(folder, error.message) from None
        if repeated := found.keys() & tensors.keys():
            raise _unusable(folder, f"two of its files have the weights {min(repeated)}")
        found |= tensors
    return found


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that together have all weights."""
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if not (folder / INDEX).exists():
        raise _unusable(folder, f"it has no {WEIGHTS} and no {INDEX}")
    try:
        names = sorted(set(json.loads(_read(folder, INDEX, MAX_INDEX_BYTES))["weight_map"].values()))
        plain = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _unusable(folder, f"its {INDEX} does not say which file has which weights") from None
    if not plain:
        raise _unusable(folder, f"its {INDEX} names files that are not in the folder itself")
    return names


def _read(folder: Path, name: str, max_bytes: int) -> bytes:
    try:
        return read_plain(folder / name, max_bytes, is_link_allowed=_is_own_link(folder, name))
    except CheckpointError as error:
        raise _unusable(folder, error.message) from None


def _is_own_link(folder: Path, name: str) -> bool:
    """Whether it is a link as the hub's cache has them: `snapshots/<revision>/<name>` → `blobs/<hash>`."""
    path = folder / name
    if folder.parent.name != "snapshots" or not path.is_symlink():
        return False
    return path.resolve().parent == (folder.parent.parent / "blobs").resolve()


def _named_as_the_model(tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> dict[str, Tensor]:
    """Weights under the names of `GPT2LMHeadModel`; the masks that older files keep among them are left out."""
    named = {
        name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
        for name, tensor in tensors.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    if said.get("tie_word_embeddings", True):
        named.pop("lm_head.weight", None)
    return named


def _check_shape(folder: Path, said: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Before a model is built as large as `config.json` says: it may say anything."""
    if odd := [name for name, tensor in weights.items() if not tensor.is_floating_point()]:
        raise _unusable(folder, f"its weights {odd[0]} are no floating-point numbers")
    tokens, places = (weights.get(f"transformer.{name}.weight") for name in ("wte", "wpe"))
    if tokens is None or places is None or tokens.dim() != 2 or places.dim() != 2:
        raise _unusable(folder, "its weights are not those of a GPT-2")
    layers = {name.split(".")[2] for name in weights if name.startswith("transformer.h.")}
    found = {"vocab_size": tokens.shape[0], "n_embd": tokens.shape[1], "n_positions": places.shape[0]}
    found["n_layer"] = len(layers)
    usual = {"vocab_size": 50257, "n_embd": 768, "n_positions": 1024, "n_layer": 12}
    for name, size in found.items():
        if said.get(name, usual[name]) != size:
            raise _unusable(folder, f"its config.json says {name} {said.get(name)}, and its weights have {size}")
    inner = said.get("n_inner")
    if inner is not None and (type(inner) is not int or not 0 < inner <= 64 * found["n_embd"]):
        raise _unusable(folder, f"its config.json says n_inner {inner}")


def _unusable(folder: Path, why: str) -> ModelUnavailable:
    return ModelUnavailable(f"the folder '{folder.name}' is no base model that can be used: {why}", field="base_model")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
