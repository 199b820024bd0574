"""GGUF files made on the spot from Hugging Face folders, laid out as the programs that write them do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def make_gguf(folder: Path, model: Path, *, pack: str = "F32", pre: str = "gpt-2", **settings: Any) -> Path:
    """Write `folder/model.gguf` from the Hugging Face folder `model`; returns the file.

    Args:
        pack: How matrices are packed; vectors stay as they are.
        settings: Further ones, over those that the model has; None leaves one out.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    family = config["model_type"]
    folder.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(folder / "model.gguf"), family)
    said = {**_shape(config), **_tokenizer(model, pre, config)}
    said = {name.replace("ARCH", family): value for name, value in said.items()}
    for name, value in {**said, **{name.replace("__", "."): value for name, value in settings.items()}}.items():
        _add(writer, name, value)
    for name, values in load_file(model / "model.safetensors").items():
        laid_out = _laid_out(name, values, config)
        kind = GGMLQuantizationType[pack if values.ndim > 1 else "F32"]
        writer.add_tensor(_name(name), quantize(laid_out, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    if config["model_type"] == "gpt2":
        return {
            "ARCH.context_length": config["n_positions"],
            "ARCH.embedding_length": config["n_embd"],
            "ARCH.feed_forward_length": 4 * config["n_embd"],
            "ARCH.block_count": config["n_layer"],
            "ARCH.attention.head_count": config["n_head"],
            "ARCH.attention.layer_norm_epsilon": config["layer_norm_epsilon"],
        }
    heads = config["num_attention_heads"]
    return {
        "ARCH.context_length": config["max_position_embeddings"],
        "ARCH.embedding_length": config["hidden_size"],
        "ARCH.feed_forward_length": config["intermediate_size"],
        "ARCH.block_count": config["num_hidden_layers"],
        "ARCH.attention.head_count": heads,
        "ARCH.attention.head_count_kv": config["num_key_value_heads"],
        "ARCH.attention.key_length": config.get("head_dim") or config["hidden_size"] // heads,
        "ARCH.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "ARCH.rope.freq_base": config["rope_parameters"]["rope_theta"],
    }


def _tokenizer(model: Path, pre: str, config: dict[str, Any]) -> dict[str, Any]:
    said = json.loads((model / "tokenizer.json").read_text())
    special = {token["content"] for token in said["added_tokens"]}
    tokens = sorted(said["model"]["vocab"], key=said["model"]["vocab"].get)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in said["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.chat_template": "{% for message in messages %}{{ message['content'] }}\n{% endfor %}",
    }


def _add(writer: Any, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, list):
        writer.add_array(name, value)
    else:
        kinds = {bool: writer.add_bool, str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        kinds[type(value)](name, value)


def _name(name: str) -> str:
    place, _, kind = name.rpartition(".")
    prefix = ""
    for layers in ("model.layers.", "transformer.h."):
        if place.startswith(layers):
            number, _, place = place.removeprefix(layers).partition(".")
            prefix = f"blk.{number}."
    return f"{prefix}{_NAMES[place]}.{kind}"


def _laid_out(name: str, values: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """GPT-2's matrices turned; of a llama's queries and keys, the numbers that turn together side by side."""
    if config["model_type"] == "gpt2":
        turned = name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))
        return np.ascontiguousarray(values.T if turned else values)
    if config["model_type"] == "llama" and (".q_proj." in name or ".k_proj." in name):
        heads = config["num_attention_heads" if ".q_proj." in name else "num_key_value_heads"]
        halves = values.reshape(heads, 2, -1, *values.shape[1:])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(values.shape))
    return values
