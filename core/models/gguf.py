"""A base model from a GGUF file: its settings and weights, named and laid out as in a Hugging Face folder.

Weights that the file has quantized are computed back to fp32: what is trained is what the file says, which is near to,
and not the same as, what was quantized. Only families whose layout is known are read; a file is never asked for code.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.bases.gguf_file import GGUF_ARCHITECTURES, GgufHeader, GgufTensor, gguf_files, read_gguf_header
from core.bases.hub_cache import is_own_link
from core.errors import CheckpointError, ModelUnavailable
from core.machine.outside import open_plain
from core.models.folder import unusable

_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_NAMES = {"gpt2": _GPT2_NAMES} | {name: _LLAMA_NAMES for name in GGUF_ARCHITECTURES if name != "gpt2"}
"""Architecture → what the format calls a layer → what transformers calls it."""

_LAYERS = {"gpt2": "transformer.h"}

_TURNED = re.compile(r"(attn_qkv|attn_output|ffn_up|ffn_down)\.weight")
"""GPT-2 keeps its matrices as (in, out), and the format none."""

_PLACE = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")


def gguf_of(folder: Path) -> Path:
    """The one GGUF file of a folder.

    Raises:
        ModelUnavailable: it has several, of which nobody says which is meant.
    """
    found = gguf_files(folder)
    if len(found) != 1:
        raise unusable(folder, f"it has {len(found)} GGUF files, and one is what a model is read from")
    return found[0]


def read_header(folder: Path) -> GgufHeader:
    """What the GGUF file of a folder says of itself.

    Raises:
        ModelUnavailable: it cannot be read.
    """
    path = gguf_of(folder)
    try:
        return read_gguf_header(path, is_link_allowed=is_own_link(folder, path.name))
    except CheckpointError as error:
        raise unusable(folder, error.message) from None


def config_of(folder: Path, header: GgufHeader) -> dict[str, Any]:
    """The settings as `config.json` would have them.

    Raises:
        ModelUnavailable: of an architecture that is not known, or they are none.
    """
    family = header.architecture
    if family not in _NAMES:
        known = ", ".join(GGUF_ARCHITECTURES)
        raise unusable(
            folder, f"its GGUF file says architecture {family!r:.80}, and those that can be read are {known}"
        )
    there = {tensor.name: tensor for tensor in header.tensors}
    if "token_embd.weight" not in there:
        raise unusable(folder, "its GGUF file has no token_embd.weight")
    said = _Settings(folder, header)
    shared = {
        "model_type": family,
        "vocab_size": there["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in there,
        **_special_tokens(header),
    }
    return {**shared, **(_gpt2(said) if family == "gpt2" else _llama(said, family, there))}


def weights_of(folder: Path, header: GgufHeader) -> dict[str, Tensor]:
    """All weights in fp32 by transformers' names.

    Raises:
        ModelUnavailable: one is cut short, unknown, or packed in a way that cannot be unpacked.
    """
    path = gguf_of(folder)
    try:
        with open_plain(path, is_link_allowed=is_own_link(folder, path.name)) as file:
            content = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
    except CheckpointError as error:
        raise unusable(folder, error.message) from None
    places = {tensor.name: _packed(folder, tensor) for tensor in header.tensors}
    _check_places(folder, replace(header, size_bytes=len(content)), places)
    found = {}
    for tensor in header.tensors:
        values = _unpacked(folder, tensor, places[tensor.name], content)
        # A copy: values that were never packed are the file's own pages, which nobody may write to.
        found[_name(folder, header, tensor.name)] = torch.from_numpy(
            np.array(_as_transformers(folder, header, tensor, values), dtype=np.float32, order="C")
        )
    return found


def _gpt2(said: _Settings) -> dict[str, Any]:
    return {
        "n_positions": said.count("context_length"),
        "n_embd": said.count("embedding_length"),
        "n_layer": said.count("block_count"),
        "n_head": said.count("attention.head_count"),
        "n_inner": said.count("feed_forward_length"),
        "layer_norm_epsilon": said.number("attention.layer_norm_epsilon", 1e-5),
    }


def _llama(said: _Settings, family: str, there: Mapping[str, GgufTensor]) -> dict[str, Any]:
    said.refuse_what_is_not_read()
    width, num_heads = said.count("embedding_length"), said.count("attention.head_count")
    head_width = said.count("attention.key_length", width // num_heads)
    if said.count("rope.dimension_count", head_width) != head_width:
        raise unusable(said.folder, "its GGUF file turns only a part of each head by its position")
    # A Qwen 2 has biases always, and its configuration no word for them.
    biases = {} if family == "qwen2" else {"attention_bias": "blk.0.attn_q.bias" in there, "head_dim": head_width}
    return {
        "hidden_size": width,
        "intermediate_size": said.count("feed_forward_length"),
        "num_hidden_layers": said.count("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": said.count("attention.head_count_kv", num_heads),
        "max_position_embeddings": said.count("context_length"),
        "rope_theta": said.number("rope.freq_base", 10_000.0),
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon", 1e-6),
        **biases,
    }


class _Settings:
    """An architecture's settings, each of the kind that it has to be."""

    def __init__(self, folder: Path, header: GgufHeader) -> None:
        self.folder = folder
        self._header = header

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number above zero."""
        found = self._header.setting(name)
        found = default if found is None else found
        if type(found) is not int or not 0 < found < 1 << 31:
            raise self._wrong(name, found)
        return found

    def number(self, name: str, default: float) -> float:
        """A finite number above zero, rounded to what a person has written: the format has no more than 32 bits."""
        found = self._header.setting(name)
        found = default if found is None else found
        if not isinstance(found, int | float) or not math.isfinite(found) or found <= 0:
            raise self._wrong(name, found)
        return float(f"{found:.7g}")

    def refuse_what_is_not_read(self) -> None:
        """Experts, and positions that are stretched: a model read without them would say something else."""
        if self._header.setting("expert_count"):
            raise unusable(self.folder, "its GGUF file has experts, which are not read")
        stretched = self._header.setting("rope.scaling.type") not in (None, "none")
        if stretched or any(tensor.name.startswith("rope_f") for tensor in self._header.tensors):
            raise unusable(self.folder, "its GGUF file stretches positions, which is not read")

    def _wrong(self, name: str, found: Any) -> ModelUnavailable:
        return unusable(self.folder, f"its GGUF file says {self._header.architecture}.{name} {found!r:.80}")


def _special_tokens(header: GgufHeader) -> dict[str, int]:
    names = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
    said = {ours: header.settings.get(f"tokenizer.ggml.{theirs}") for ours, theirs in names.items()}
    return {name: value for name, value in said.items() if type(value) is int}


def _name(folder: Path, header: GgufHeader, name: str) -> str:
    """What transformers calls a tensor."""
    place = _PLACE.fullmatch(name)
    layer = _NAMES[header.architecture].get(place[2]) if place else None
    if place is None or layer is None:
        raise unusable(folder, f"its GGUF file has a tensor {name[:80]!r}, which no {header.architecture} has")
    where = f"{_LAYERS.get(header.architecture, 'model.layers')}.{place[1]}." if place[1] else ""
    return f"{where}{layer}.{place[3]}"


def _as_transformers(
    folder: Path, header: GgufHeader, tensor: GgufTensor, values: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    if header.architecture == "gpt2":
        return values.T if _TURNED.search(tensor.name) else values
    if header.architecture != "llama" or not re.search(r"attn_[qk]\.", tensor.name):
        return values
    # A llama's file has the pairs of numbers that are turned together side by side; transformers has them half a head
    # apart.
    said = _Settings(folder, header)
    num_heads = said.count("attention.head_count")
    if "attn_k" in tensor.name:
        num_heads = said.count("attention.head_count_kv", num_heads)
    if values.shape[0] % (2 * num_heads):
        raise unusable(folder, f"its GGUF file says that {tensor.name} is of {num_heads} heads")
    pairs = values.reshape(num_heads, -1, 2, *values.shape[1:])
    return pairs.swapaxes(1, 2).reshape(values.shape)


@dataclass(frozen=True, slots=True)
class _Packed:
    """How a tensor's bytes are to be read."""

    kind: Any
    row_bytes: int
    begin: int
    end: int


def _packed(folder: Path, tensor: GgufTensor) -> _Packed:
    """Where a tensor's bytes are, by its shape and type."""
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError:
        raise unusable(folder, "reading GGUF needs a package that is not here: pip install 'ratchet[gguf]'") from None
    try:
        kind = GGMLQuantizationType(tensor.type)
        per_block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise unusable(folder, f"its GGUF file packs {tensor.name} in an unknown way, {tensor.type}") from None
    width = tensor.shape[-1]
    if width % per_block:
        raise unusable(folder, f"its GGUF file says that {tensor.name} is {width} wide, in blocks of {per_block}")
    row_bytes = width // per_block * block_bytes
    return _Packed(kind, row_bytes, tensor.begin, tensor.begin + math.prod(tensor.shape[:-1]) * row_bytes)


def _check_places(folder: Path, header: GgufHeader, packed: Mapping[str, _Packed]) -> None:
    """Tensors that share bytes could unpack to any size."""
    reached = 0
    for name, where in sorted(packed.items(), key=lambda item: item[1].begin):
        if where.begin < reached:
            raise unusable(folder, f"its GGUF file has its tensor {name[:80]} where another one is")
        if where.end > header.size_bytes:
            raise unusable(folder, f"its GGUF file ends before its tensor {name[:80]} does")
        reached = where.end


def _unpacked(
    folder: Path, tensor: GgufTensor, packed: _Packed, content: NDArray[np.uint8]
) -> NDArray[np.floating[Any]]:
    """Values of a tensor."""
    from gguf.quants import dequantize

    rows = content[packed.begin : packed.end].reshape(*tensor.shape[:-1], packed.row_bytes)
    try:
        values: NDArray[np.floating[Any]] = dequantize(rows, packed.kind)
    except NotImplementedError:
        raise unusable(folder, f"its GGUF file packs {tensor.name} as {packed.kind.name}, which is not read") from None
    return values
