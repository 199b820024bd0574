"""The files of a Hugging Face folder, as it comes from anywhere: looked at before it is read, and never obeyed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from core.bases.hub_cache import is_own_link
from core.checkpoints.weights import load_tensors
from core.errors import CheckpointError, ModelUnavailable
from core.machine.outside import read_plain

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


def read_config(folder: Path) -> dict[str, Any]:
    """What `config.json` says.

    Raises:
        ModelUnavailable: it is no object in JSON.
    """
    try:
        said = json.loads(_read(folder, "config.json", MAX_CONFIG_BYTES))
    except (ValueError, RecursionError):
        raise unusable(folder, "its config.json is no JSON") from None
    if not isinstance(said, dict):
        raise unusable(folder, "its config.json is no object with settings")
    return said


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights by name; on the CPU they are the pages of their files.

    Raises:
        ModelUnavailable: some are missing, twice there, unreadable or no floating-point numbers.
    """
    found: dict[str, Tensor] = {}
    for name in _weight_files(folder):
        try:
            tensors = load_tensors(folder / name, is_link_allowed=is_own_link(folder, name))
        except CheckpointError as error:
            raise unusable(folder, error.message) from None
        if repeated := found.keys() & tensors.keys():
            raise unusable(folder, f"two of its files have the weights {min(repeated)}")
        found |= tensors
    return found


def check_tokenizer_files(folder: Path) -> None:
    """Each is a regular file of a size that can be.

    Raises:
        ModelUnavailable: one is not, or there are none.
    """
    there = [name for name in TOKENIZER_FILES if (folder / name).exists()]
    for name in there:
        _read(folder, name, MAX_TOKENIZER_BYTES)
    if not {"tokenizer.json", "vocab.json"}.intersection(there):
        raise unusable(folder, "it has no tokenizer.json, and no vocab.json and merges.txt")


def unusable(folder: Path, why: str) -> ModelUnavailable:
    """The one error about a folder that cannot be used."""
    return ModelUnavailable(f"the folder '{folder.name}' is no base model that can be used: {why}", field="base_model")


def _weight_files(folder: Path) -> list[str]:
    """Names of the files that together have all weights."""
    if (folder / WEIGHTS).exists():
        return [WEIGHTS]
    if not (folder / INDEX).exists():
        raise unusable(folder, f"it has no {WEIGHTS} and no {INDEX}")
    try:
        names = sorted(set(json.loads(_read(folder, INDEX, MAX_INDEX_BYTES))["weight_map"].values()))
        plain = all(Path(name).name == name and name.endswith(".safetensors") for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise unusable(folder, f"its {INDEX} does not say which file has which weights") from None
    if not plain:
        raise unusable(folder, f"its {INDEX} names files that are not in the folder itself")
    return names


def _read(folder: Path, name: str, max_bytes: int) -> bytes:
    try:
        return read_plain(folder / name, max_bytes, is_link_allowed=is_own_link(folder, name))
    except CheckpointError as error:
        raise unusable(folder, error.message) from None
