"""A pretrained model from a folder as it comes from anywhere: nothing that the folder asks for is done.

transformers would follow it: an adapter's base elsewhere, code to import, kernels from the hub, weights under another
name. So of `config.json` only the settings that shape the model are taken, weights are read here, and transformers is
given both. Before a model is built, it is laid out without memory: a configuration may claim any size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.bases.gguf_file import is_gguf_folder
from core.errors import ModelUnavailable
from core.models.folder import check_tokenizer_files, read_config, read_weights, unusable
from core.models.four_bit import check_can_be_packed, linear_in_blocks, take_place
from core.models.gguf import config_of, read_header, weights_of
from core.models.gguf_tokenizer import tokenizer_of
from core.models.kernels import take_kernels

MAX_LAYERS = 10_000
"""Of layers, or of experts in one."""

MAX_BUFFER_NUMBERS = 1 << 30
"""What a model computes for itself: masks, angles."""

_OLDER_NAMES = frozenset({"rope_theta", "rope_scaling", "partial_rotary_factor", "rotary_pct", "rotary_emb_base"})
"""Of rotary positions; transformers turns them into its own `rope_parameters`."""

_DROPOUT = re.compile(
    r"(attn|embd|resid|emb)_pdrop|((attention|attention_probs|hidden|activation|embed|embedding|resid)_)?dropout(_prob)?"
)
"""As families call the places where they have one."""

_CAUSAL = re.compile(r"\w+(ForCausalLM|LMHeadModel)")


def load_causal_lm(folder: Path, dropout: float = 0.0, *, in_four_bits: bool = False) -> Any:
    """The causal language model of a folder in fp32; weights are the pages of the folder's files wherever they can be.

    Args:
        dropout: At each place where the family has one.
        in_four_bits: Pack the matrices of its blocks, one after the other, see `core.models.four_bit`.

    Raises:
        ModelUnavailable: says what of the folder cannot be used.
        ConfigError: what packs them is not installed.
    """
    said, weights = _settings_and_weights(folder)
    laid_out = _laid_out(folder, said, weights, len(weights), dropout)
    # Masks that older files keep among their weights are computed anew.
    weights = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    to_pack = _to_pack(laid_out, weights) if in_four_bits else {}
    with _one_sentence(folder):
        # The model's own class, not the automatic one: that would look for what the folder asks for.
        model, found = type(laid_out).from_pretrained(
            None,
            config=laid_out.config,
            state_dict={**weights, **dict(to_pack.values())},
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]):
        raise unusable(folder, f"its weights lack {', '.join(missing[:3])}")
    _check_all_used(folder, found["unexpected_keys"], model)
    take_kernels(model)
    if in_four_bits:
        _pack(folder, model, to_pack, weights)
    return model


def lay_out_causal_lm(folder: Path, dropout: float = 0.0, *, in_four_bits: bool = False) -> Any:
    """The same without memory, on the meta device; of the weights, only what they are is read.

    Raises:
        ModelUnavailable, ConfigError: as `load_causal_lm`.
    """
    if is_gguf_folder(folder):
        header = read_header(folder)
        model = _laid_out(folder, config_of(folder, header), {}, len(header.tensors), dropout)
    else:
        weights = read_weights(folder)
        model = _laid_out(folder, read_config(folder), weights, len(weights), dropout)
    model.tie_weights()
    take_kernels(model)
    if in_four_bits:
        check_can_be_packed(model)
        for name, _ in list(linear_in_blocks(model)):
            take_place(model, name)
    return model


def family_of(folder: Path) -> str:
    """What `config.json`, or a GGUF file, calls the architecture: `gpt2`, `llama`, …

    Raises:
        ModelUnavailable: it does not say it.
    """
    said = _settings(folder)
    if not isinstance(said.get("model_type"), str):
        raise unusable(folder, f"its config.json says model_type {said.get('model_type')!r}")
    return str(said["model_type"])


def load_tokenizer(folder: Path, config: Any) -> Any:
    """The tokenizer of a folder; `config` is its model's.

    Raises:
        ModelUnavailable: it has none, or none that can be read.
    """
    from transformers import AutoTokenizer

    if is_gguf_folder(folder) and not (folder / "tokenizer.json").exists():
        return tokenizer_of(folder, read_header(folder))
    check_tokenizer_files(folder)
    try:
        found = AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # The tokenizers library raises no class of its own.
        raise unusable(folder, f"its tokenizer cannot be read: {_first_line(error)}") from None
    # What it asked for is not passed on to those who may obey it.
    found.init_kwargs.pop("auto_map", None)
    return found


def _settings(folder: Path) -> dict[str, Any]:
    return config_of(folder, read_header(folder)) if is_gguf_folder(folder) else read_config(folder)


def _settings_and_weights(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not is_gguf_folder(folder):
        return read_config(folder), read_weights(folder)
    header = read_header(folder)
    # Settings first: they are looked through before anything is unpacked.
    return config_of(folder, header), weights_of(folder, header)


def _laid_out(
    folder: Path, said: Mapping[str, Any], weights: Mapping[str, Tensor], num_weights: int, dropout: float
) -> Any:
    """The model that a configuration asks for, on the meta device, if it fits the weights, as far as they are known."""
    config_class, model_class = _classes(folder, said)
    _check_counts(folder, said, config_class, num_weights)
    numbers = {name: tensor for name, tensor in weights.items() if tensor.is_floating_point()}
    if odd := [name for name in weights if name not in numbers and not name.endswith("bias")]:
        raise unusable(folder, f"its weights {odd[0]} are no floating-point numbers")
    _be_quiet()
    with _one_sentence(folder):
        config = config_class(**{**_shape(config_class, said), **_drops(config_class, dropout)})
        config.architectures = [model_class.__name__]
        with torch.device("meta"):
            model = model_class(config)
        if weights:
            _check_fit(folder, model, numbers)
    return model


def _to_pack(laid_out: Any, weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Layer → the name of its weight in the file, and what is loaded in its place: one number, as often as it takes.

    So transformers makes no copy of a matrix in fp32 that is then packed.
    """
    check_can_be_packed(laid_out)
    layers = {f"{name}.weight": name for name, _ in linear_in_blocks(laid_out)}
    prefix = f"{laid_out.base_model_prefix}."
    found = {}
    for name, tensor in weights.items():
        same = next((n for n in (name, f"{prefix}{name}", name.removeprefix(prefix)) if n in layers), None)
        if same is not None:
            found[layers[same]] = name, torch.zeros((), dtype=torch.float32).expand(tensor.shape)
    return found


def _pack(
    folder: Path, model: Any, to_pack: Mapping[str, tuple[str, Tensor]], weights: MutableMapping[str, Tensor]
) -> None:
    """Put layers in four bits where linear ones are; what has been packed is let go of."""
    layers: dict[str, Any] = dict(linear_in_blocks(model))
    for layer, (_, stand_in) in to_pack.items():
        if layer not in layers or layers[layer].weight.data_ptr() != stand_in.data_ptr():
            raise unusable(folder, f"its weights {layer} are put together in a way that cannot be quantized")
    for name, part in layers.items():
        take_place(model, name, weights.pop(to_pack[name][0]) if name in to_pack else part.weight)


def _classes(folder: Path, said: Mapping[str, Any]) -> tuple[Any, Any]:
    """The configuration's class and the model's, both transformers' own."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = said.get("model_type")
    if said.get("quantization_config"):
        raise unusable(folder, "its weights are quantized")
    config_class: Any = CONFIG_MAPPING[family] if isinstance(family, str) and family in CONFIG_MAPPING else None
    model_class: Any = AutoModelForCausalLM._model_mapping.get(config_class, None) if config_class else None
    if not _CAUSAL.fullmatch(getattr(model_class, "__name__", "")):
        raise unusable(
            folder, f"its config.json says model_type {family!r}, of which no causal language model is known"
        )
    if config_class.sub_configs_defaults:
        raise unusable(folder, f"its config.json says model_type {family!r}, whose models are made of several in one")
    return config_class, model_class


def _shape(config_class: Any, said: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the family itself, without those that every configuration has: they only say what to do with it."""
    from transformers import PreTrainedConfig

    common = {field.name for field in fields(PreTrainedConfig)}
    own = {field.name for field in fields(config_class)} - common
    return {name: said[name] for name in (own | _OLDER_NAMES | config_class.attribute_map.keys()) & said.keys()}


def _drops(config_class: Any, dropout: float) -> dict[str, float]:
    return {field.name: dropout for field in fields(config_class) if _DROPOUT.fullmatch(field.name)}


def _check_counts(folder: Path, said: Mapping[str, Any], config_class: Any, num_weights: int) -> None:
    """Before so much as a list of layers is made."""
    layers = {"num_hidden_layers", config_class.attribute_map.get("num_hidden_layers")}
    for name, value in said.items():
        if isinstance(value, int) and (
            (name in layers and value > num_weights) or (re.search("layer|expert", name) and value > MAX_LAYERS)
        ):
            raise unusable(folder, f"its config.json says {name} {value}, and it has {num_weights} weights")


def _check_fit(folder: Path, laid_out: Any, weights: Mapping[str, Tensor]) -> None:
    """Compare what the configuration asks for with what is there, weight by weight, and in all."""
    wanted = laid_out.state_dict()
    prefix = f"{laid_out.base_model_prefix}."
    num_known = 0
    for name, tensor in weights.items():
        same = next((n for n in (name, f"{prefix}{name}", name.removeprefix(prefix)) if n in wanted), None)
        num_known += same is not None
        if same is not None and wanted[same].shape != tensor.shape:
            asked, there = tuple(wanted[same].shape), tuple(tensor.shape)
            raise unusable(folder, f"its config.json does not fit its weights: {name} should be {asked} and is {there}")
    if not num_known:
        raise unusable(folder, f"its weights are not those of a {laid_out.config.model_type!r}")
    own = {id(parameter): parameter.numel() for parameter in laid_out.parameters()}
    if sum(own.values()) > 2 * sum(tensor.numel() for tensor in weights.values()):
        raise unusable(folder, "its config.json asks for more weights than it has")
    if sum(buffer.numel() for buffer in laid_out.buffers()) > MAX_BUFFER_NUMBERS:
        raise unusable(folder, "its config.json asks for tables larger than any that are known")


def _check_all_used(folder: Path, unexpected: Any, model: Any) -> None:
    """What older releases kept beside the weights is left; a whole layer that the configuration forgets is not."""
    wanted = model.state_dict().keys()
    for name in sorted(unexpected):
        first = re.sub(r"\.\d+\.", ".0.", name, count=1)
        if first in wanted or f"{model.base_model_prefix}.{first}" in wanted:
            raise unusable(folder, f"its config.json leaves out its weights {name}")


@contextmanager
def _one_sentence(folder: Path) -> Iterator[None]:
    """Whatever a constructor of transformers says about settings that make no sense."""
    try:
        yield
    except ModelUnavailable:
        raise
    except Exception as error:  # Each family checks its settings in its own way, or stumbles.
        raise unusable(folder, f"its config.json does not fit its weights: {_first_line(error)}") from None


def _be_quiet() -> None:
    """What transformers says is not for the user of a run: bars, tables of weights, hints for its own callers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
