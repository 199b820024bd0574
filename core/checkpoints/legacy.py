"""Checkpoints of the older scripts: one `.pt` file, read with torch's restricted reader and trusted for nothing else.

A `.pt` file is a zip archive with a pickle in it. `weights_only=True` rebuilds tensors and plain containers and refuses
every other instruction; what is opened at all is a regular file of bounded size that begins as a zip archive does.
"""

from __future__ import annotations

import pickle
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.checkpoints.pickles import deepest_tuple
from core.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound, CheckpointUnsafe
from core.optimization.moments import check_moments
from core.state import CheckpointContent
from core.tokens.tokenizer import CharacterTokenizer

MAX_BYTES = 64 << 30
MAX_PLAIN_BYTES = 64 << 20
"""Everything but tensors: names, settings, the alphabet."""

MAX_EXPANSION = 1.1
"""Tensors lie uncompressed in the archive; one that grows when opened is a bomb."""

MAX_ITEMS = 1_000_000
"""Containers and tensors; a model of a thousand layers has a hundred thousand with its optimizer."""

MAX_NAME_LENGTH = 500
MAX_DEPTH = 16
"""Of tuples in one another: a tensor is made of three."""

_UNREADABLE = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, MemoryError)
"""What torch's reader stumbles with over a file that is no more than damaged, beside errors of the archive itself."""

_ADAPTER = re.compile(r"(?:.*\.)?(transformer\.h\.\d+\..+\.lora_[AB])\.(?:default\.)?weight")
_SETTINGS = (
    *("model_type", "base_model", "test_mode", "use_lora", "lora_rank", "lora_alpha", "lora_dropout", "dropout"),
    *("training_steps", "learning_rate", "block_size", "batch_size", "use_lr_warmup", "warmup_steps", "device", "seed"),
    *("enable_checkpoints", "checkpoint_interval", "enable_output_to_file", "eval_interval", "eval_iters"),
    *("n_embd", "n_head", "n_layer", "temperature", "top_k", "max_new_tokens"),
)
"""What the older scripts had; a later setting of the same name would mean another thing."""

_EMBEDDINGS = ("token_embedding.weight", "transformer.wte.weight")


def load(path: Path, device: str = "cpu") -> CheckpointContent:
    """The content of a legacy file.

    Raises:
        CheckpointNotFound, CheckpointUnsafe, CheckpointCorrupt: said in one sentence.
    """
    _check_container(path)
    try:
        said = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointUnsafe(
            f"'{path.name}' holds more than tensors and plain values, so it was not opened: "
            "only the file's weights, settings and numbers are ever read"
        ) from None
    except (*_UNREADABLE, ArithmeticError, OSError, struct.error, zipfile.BadZipFile) as error:
        raise CheckpointCorrupt(f"'{path.name}' is not a readable checkpoint: {_first_line(error)}") from None
    return _content(path, said)


def restore_legacy_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Put back what the older scripts kept of their optimizer: torch's own form.

    Raises:
        CheckpointMismatch: it belongs to another model.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(_of_adamw(optimizer, saved))
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointMismatch(f"the checkpoint's optimizer state does not fit this model: {error}") from None
    # The configuration decides rates and betas, so that overrides hold.
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)


def _of_adamw(optimizer: torch.optim.Optimizer, saved: Any) -> dict[str, Any]:
    """What torch may see: it copies and casts whatever it is given, so nothing is larger than what it belongs to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state, groups = (saved.get("state"), saved.get("param_groups")) if isinstance(saved, dict) else (None, None)
    if not isinstance(state, dict) or not isinstance(groups, list) or not all(map(_is_plain_group, groups)):
        raise ValueError("it is no 'state' by parameter with plain 'param_groups'")
    if [index for group in groups for index in group["params"]] != list(range(len(parameters))):
        raise ValueError(f"it is not of {len(parameters)} parameters")
    for index, moments in state.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(moments, dict):
            raise ValueError("it has moments of no parameter")
        check_moments(f"parameter {index}", moments, parameters[index])
    return {"state": state, "param_groups": groups}


def _is_plain_group(group: Any) -> bool:
    """Numbers, texts and pairs of numbers, beside the parameters' places."""
    if not isinstance(group, dict) or not isinstance(group.get("params"), list):
        return False
    return all(
        isinstance(name, str)
        and all(
            item is None or isinstance(item, str | int | float)
            for item in (value if isinstance(value, list | tuple) else [value])
        )
        for name, value in group.items()
    )


def _check_container(path: Path) -> None:
    try:
        status = path.stat()
    except FileNotFoundError:
        raise CheckpointNotFound(f"no checkpoint at '{path}'") from None
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        raise CheckpointUnsafe(f"'{path.name}' is not a regular file of at most {MAX_BYTES >> 30} GiB")
    try:
        if not zipfile.is_zipfile(path):
            raise CheckpointUnsafe(f"'{path.name}' is not a checkpoint that torch wrote (not a zip archive)")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error) as error:
        raise CheckpointCorrupt(f"'{path.name}' is not a readable archive: {error}") from None
    grown = sum(entry.file_size for entry in entries)
    if grown > status.st_size * MAX_EXPANSION + 4096:
        raise CheckpointUnsafe(f"'{path.name}' would grow from {status.st_size} to {grown} bytes when opened")
    # torch finds its entry by a name in any case.
    pickles = [entry for entry in entries if entry.filename.lower().endswith(".pkl")]
    if any(entry.file_size > MAX_PLAIN_BYTES for entry in pickles):
        raise CheckpointUnsafe(f"'{path.name}' has more than {MAX_PLAIN_BYTES >> 20} MiB beside its tensors")
    for entry in pickles:
        _check_depth(path, entry)


def _check_depth(path: Path, entry: zipfile.ZipInfo) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            depth = deepest_tuple(archive.read(entry))
    except (*_UNREADABLE, OSError, zipfile.BadZipFile, zlib.error, struct.error) as error:
        raise CheckpointCorrupt(f"'{path.name}' is not a readable checkpoint: {_first_line(error)}") from None
    if depth > MAX_DEPTH:
        raise CheckpointUnsafe(f"'{path.name}' has {depth} tuples in one another, so it was not opened")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _content(path: Path, said: Any) -> CheckpointContent:
    weights = said.get("model_state_dict") if isinstance(said, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointCorrupt(f"'{path.name}' has no 'model_state_dict' of tensors")
    if not all(map(_is_all_there, _tensors_in(path, said))):
        raise CheckpointUnsafe(f"'{path.name}' has tensors that claim more than the file holds, so it was not opened")
    if not all(isinstance(name, str) and len(name) <= MAX_NAME_LENGTH for name in weights):
        raise CheckpointUnsafe(f"'{path.name}' has weights without a name of at most {MAX_NAME_LENGTH} characters")
    step = said.get("step", 0)
    if type(step) is not int or not 0 <= step < 2**63:
        # Not shown: what refers to itself often enough has no end when it is written out.
        raise CheckpointCorrupt(f"'{path.name}' has no usable 'step'")
    _check_vocabulary(path, said, _renamed(weights))
    return CheckpointContent(
        path=path,
        id=None,
        name=path.stem,
        step=step,
        end_step=step,
        config={**_kind(weights), **_config(said)},
        model_state_dict=_renamed(weights),
        optimizer_state_dict=said.get("optimizer_state_dict"),
        run={"step": step},
        rng=None,
        scale={},
        versions={},
        surroundings={},
        hashes={},
        tokenizer=CharacterTokenizer(alphabet) if (alphabet := _alphabet(said)) else None,
        averages={},
        source_sha256=None,
    )


def _tensors_in(path: Path, said: Any) -> Iterator[Tensor]:
    """All tensors, however deep, each once: a few shared lists can stand for more places than anyone can visit.

    Raises:
        CheckpointUnsafe: there are more of them than any model needs.
    """
    seen: set[int] = set()
    waiting: list[Any] = [said]
    while waiting:
        item = waiting.pop()
        is_tensor = isinstance(item, Tensor)
        if id(item) in seen or not (is_tensor or isinstance(item, Mapping | list | tuple | set)):
            continue
        seen.add(id(item))
        if len(seen) > MAX_ITEMS:
            raise CheckpointUnsafe(f"'{path.name}' has more than {MAX_ITEMS} tensors and lists, so it was not opened")
        if is_tensor:
            yield item
        else:
            waiting.extend(item.values() if isinstance(item, Mapping) else item)


def _is_all_there(tensor: Tensor) -> bool:
    """Whether each element has its own place in the file: strides of 0 make terabytes of one number."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """GPT-2's weights under Hugging Face's own names, whatever the script's wrapper called the model in it."""
    if not any("transformer." in name for name in weights):
        return dict(weights)
    adapters = {f"base_model.model.{found[1]}.weight": weights[found[0]] for found in _adapters(weights)}
    if adapters:
        return adapters
    named = {
        re.sub(r"^.*?(?=transformer\.|lm_head\.)", "", name): tensor
        for name, tensor in weights.items()
        if not name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    head, tokens = named.get("lm_head.weight"), named.get("transformer.wte.weight")
    if head is not None and tokens is not None and torch.equal(head, tokens):
        del named["lm_head.weight"]
    return named


def _adapters(weights: Mapping[str, Tensor]) -> Iterator[re.Match[str]]:
    return (found for found in map(_ADAPTER.fullmatch, weights) if found)


def _kind(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the weights tell of the run, for a file that does not say it."""
    is_gpt2 = any("transformer." in name for name in weights)
    return {
        "model_type": "gpt2" if is_gpt2 else "from_scratch",
        "use_lora": any(".lora_A." in name for name in weights),
    }


def _check_vocabulary(path: Path, said: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """What the file says of its vocabulary, what its weights have and how long its alphabet is are one number.

    Raises:
        CheckpointMismatch: they are not.
    """
    told = _settings(said).get("vocab_size")
    rows = [weights[name].shape[0] for name in _EMBEDDINGS if name in weights and weights[name].dim() == 2]
    alphabet = _alphabet(said)
    found = {
        "its vocab_size says": told if isinstance(told, int) and abs(told) < 2**63 else None,
        "its weights have": rows[0] if rows else None,
        "its alphabet has": len(alphabet) if alphabet and _EMBEDDINGS[0] in weights else None,
    }
    sizes = {what: size for what, size in found.items() if size is not None}
    if len(set(sizes.values())) > 1:
        what = ", ".join(f"{what} {size}" for what, size in sizes.items())
        raise CheckpointMismatch(f"'{path.name}' does not agree with itself on its vocabulary: {what} tokens")


def _alphabet(said: Mapping[str, Any]) -> list[str] | None:
    """The characters in order of their ids, under whichever name the script kept them."""
    chars, stoi, itos = (said.get(name) for name in ("chars", "stoi", "itos"))
    if isinstance(stoi, dict) and all(isinstance(index, int) for index in stoi.values()):
        chars = sorted(stoi, key=lambda character: stoi[character])
    elif isinstance(itos, dict) and all(isinstance(index, int) for index in itos):
        chars = [itos[index] for index in sorted(itos)]
    elif isinstance(itos, list | str):
        chars = itos
    if not isinstance(chars, list | str) or not all(isinstance(item, str) and len(item) == 1 for item in chars):
        return None
    return list(chars)


def _settings(said: Mapping[str, Any]) -> dict[str, Any]:
    """Whatever a script kept beside its weights, or under one of two names, by lower-case name."""
    flat: dict[str, Any] = {}
    for layer in (said, said.get("config"), said.get("hyperparameters")):
        if isinstance(layer, Mapping):
            flat.update({key.lower(): value for key, value in layer.items() if isinstance(key, str)})
    return flat


def _config(said: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters, wherever the script put them; settings that mean nothing here are left behind."""
    flat = _settings(said)
    known = {**{name: name for name in _SETTINGS}, "training_data_source": "source", "source": "source"}
    return {field: flat[name] for name, field in known.items() if isinstance(flat.get(name), str | int | float | bool)}
