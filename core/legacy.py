"""Checkpoints of the older scripts: one `.pt` file, read with torch's restricted reader and trusted for nothing else.

A `.pt` file is a zip archive with a pickle in it. `weights_only=True` rebuilds tensors and plain containers and refuses
every other instruction; what is opened at all is a regular file of bounded size that begins as a zip archive does.
"""

from __future__ import annotations

import pickle
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.config import ENVIRONMENT, TrainingConfig
from core.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound, CheckpointUnsafe
from core.state import CheckpointContent

MAX_BYTES = 64 << 30
MAX_EXPANSION = 1.1
"""Tensors lie uncompressed in the archive; one that grows when opened is a bomb."""


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
    except (RuntimeError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointCorrupt(f"'{path.name}' is not a readable checkpoint: {error}") from None
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
    if not zipfile.is_zipfile(path):
        raise CheckpointUnsafe(f"'{path.name}' is not a checkpoint that torch wrote (not a zip archive)")
    with zipfile.ZipFile(path) as archive:
        grown = sum(entry.file_size for entry in archive.infolist())
    if grown > status.st_size * MAX_EXPANSION + 4096:
        raise CheckpointUnsafe(f"'{path.name}' would grow from {status.st_size} to {grown} bytes when opened")


def _content(path: Path, said: Any) -> CheckpointContent:
    weights = said.get("model_state_dict") if isinstance(said, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise CheckpointCorrupt(f"'{path.name}' has no 'model_state_dict' of tensors")
    step = said.get("step", 0)
    if not isinstance(step, int) or step < 0:
        raise CheckpointCorrupt(f"'{path.name}' has no usable 'step': {step!r}")
    return CheckpointContent(
        path=path,
        id=None,
        name=path.stem,
        step=step,
        end_step=step,
        config=_config(said),
        model_state_dict=weights,
        optimizer_state_dict=said.get("optimizer_state_dict"),
        run={"step": step},
        rng=None,
        characters=_alphabet(said),
        source_sha256=None,
    )


def _alphabet(said: Mapping[str, Any]) -> list[str] | None:
    """The characters in order of their ids, under whichever name the script kept them."""
    chars, stoi, itos = (said.get(name) for name in ("chars", "stoi", "itos"))
    if isinstance(stoi, dict):
        chars = sorted(stoi, key=lambda character: stoi[character])
    elif isinstance(itos, dict):
        chars = [itos[index] for index in sorted(itos)]
    elif isinstance(itos, list | str):
        chars = itos
    if not isinstance(chars, list | str) or not all(isinstance(item, str) and len(item) == 1 for item in chars):
        return None
    return list(chars)


def _config(said: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters, wherever the script put them; settings that mean nothing here are left behind."""
    flat: dict[str, Any] = {}
    for layer in (said, said.get("config"), said.get("hyperparameters")):
        if isinstance(layer, Mapping):
            flat.update({str(key).lower(): value for key, value in layer.items()})
    known = {**{name.lower(): field for name, field in ENVIRONMENT.items()}, "source": "source"}
    return {
        field: flat[name]
        for name, field in known.items()
        if field in TrainingConfig.model_fields and isinstance(flat.get(name), str | int | float | bool)
    }
