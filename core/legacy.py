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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.config import ENVIRONMENT, TrainingConfig
from core.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound, CheckpointUnsafe
from core.state import CheckpointContent

MAX_BYTES = 64 << 30
MAX_PLAIN_BYTES = 64 << 20
"""Everything but tensors: names, settings, the alphabet."""

MAX_EXPANSION = 1.1
"""Tensors lie uncompressed in the archive; one that grows when opened is a bomb."""

_UNREADABLE = (RuntimeError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, MemoryError)
"""What torch's reader stumbles with over a file that is no more than damaged, beside errors of the archive itself."""

_ADAPTER = re.compile(r"(?:.*\.)?(transformer\.h\.\d+\..+\.lora_[AB])\.(?:default\.)?weight")
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointCorrupt(f"'{path.name}' is not a readable checkpoint: {reason}") from None
    return _content(path, said)


def restore_legacy_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
    """Put back what the older scripts kept of their optimizer: torch's own form.

    Raises:
        CheckpointMismatch: it belongs to another model.
    """
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(saved)
        for parameter, moments in optimizer.state.items():
            if any(moment.dim() and moment.shape != parameter.shape for moment in moments.values()):
                raise ValueError(f"moments of another shape than {tuple(parameter.shape)}")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointMismatch(f"the checkpoint's optimizer state does not fit this model: {error}") from None
    # The configuration decides rates and betas, so that overrides hold.
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update(kept)


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
    if any(entry.file_size > MAX_PLAIN_BYTES for entry in entries if entry.filename.endswith(".pkl")):
        raise CheckpointUnsafe(f"'{path.name}' has more than {MAX_PLAIN_BYTES >> 20} MiB beside its tensors")


def _content(path: Path, said: Any) -> CheckpointContent:
    weights = said.get("model_state_dict") if isinstance(said, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointCorrupt(f"'{path.name}' has no 'model_state_dict' of tensors")
    if not all(isinstance(name, str) for name in weights) or not all(map(_is_all_there, _tensors_in(said))):
        raise CheckpointUnsafe(f"'{path.name}' has tensors that claim more than the file holds, so it was not opened")
    step = said.get("step", 0)
    if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**63:
        raise CheckpointCorrupt(f"'{path.name}' has no usable 'step': {step!r}")
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
        characters=_alphabet(said),
        source_sha256=None,
    )


def _tensors_in(said: Any, depth: int = 4) -> Iterator[Tensor]:
    """All tensors, as deep as an optimizer keeps its own."""
    if isinstance(said, Tensor):
        yield said
    elif isinstance(said, Mapping) and depth:
        for value in said.values():
            yield from _tensors_in(value, depth - 1)


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
        "its vocab_size says": told if isinstance(told, int) else None,
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
            flat.update({str(key).lower(): value for key, value in layer.items()})
    return flat


def _config(said: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters, wherever the script put them; settings that mean nothing here are left behind."""
    flat = _settings(said)
    known = {**{name.lower(): field for name, field in ENVIRONMENT.items()}, "source": "source"}
    return {
        field: flat[name]
        for name, field in known.items()
        if field in TrainingConfig.model_fields and isinstance(flat.get(name), str | int | float | bool)
    }
