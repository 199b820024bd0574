"""The base models at hand: folders below the models root, and what lies in Hugging Face's cache.

Only configurations and the headers of weights are read, and of those no more than such files can have. What is said
here to be usable may still be refused when it is opened, which looks at everything. Light: no torch, no transformers.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from core.bases.gguf_file import GGUF_ARCHITECTURES, is_gguf_folder, read_gguf_header
from core.bases.hub_cache import cache_root, cached_models, is_own_link
from core.checkpoints.tensor_files import MAX_HEADER_BYTES, check_tensor_file
from core.errors import CheckpointError, RatchetError
from core.machine.outside import open_plain, read_plain

MAX_MODELS = 1_000
"""In one list, from one place."""

MAX_FILES = 1_000
"""In one folder; the largest models are published in two hundred."""

MAX_CONFIG_BYTES = 1 << 20
MAX_TOKENIZER_CONFIG_BYTES = 16 << 20

_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""As families call the most tokens that they can see."""

Place = Literal["folder", "cache"]


@dataclass(frozen=True, slots=True)
class ModelAtHand:
    """A base, or what keeps a folder from being one, in `error`; what is not known is None.

    `name` is what `base_model` takes, `size_bytes` that of the weights.
    """

    name: str
    source: Place
    family: str | None = None
    size_bytes: int | None = None
    num_parameters: int | None = None
    max_context: int | None = None
    has_chat_template: bool = False
    error: str | None = None


class _Unusable(Exception):
    """Why a folder is no base."""


def models_at_hand(models_root: Path, cache: Path | None = None) -> list[ModelAtHand]:
    """All that there is, by name, folders first.

    Args:
        cache: Of Hugging Face's library; by default where this process's environment has it. A worker with another
            environment may see another.
    """
    folders = islice(_folders(models_root), MAX_MODELS)
    found = [_look_at(folder.relative_to(models_root).as_posix(), "folder", folder) for folder in folders]
    cached = islice(cached_models(cache or cache_root()), MAX_MODELS)
    return found + [_look_at(name, "cache", folder) for name, folder in cached]


def _folders(root: Path) -> Iterator[Path]:
    """Those that look like models, one or two levels down: `smollm2`, `org/model`."""
    for folder in _subfolders(root):
        if _looks_like_a_model(folder):
            yield folder
        else:
            yield from (inner for inner in _subfolders(folder) if _looks_like_a_model(inner))


def _subfolders(folder: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []
    # What is being written is called tmp-… until it is whole.
    return [folder / name for name in names if not name.startswith((".", "tmp-"))]


def _looks_like_a_model(folder: Path) -> bool:
    marks = ("config.json", "adapter_config.json", "*.safetensors", "*.gguf", "pytorch_model*.bin")
    return any(any(folder.glob(mark)) for mark in marks)


def _look_at(name: str, source: Place, folder: Path) -> ModelAtHand:
    shown = name.encode("utf-8", "backslashreplace").decode()
    if shown != name:
        return ModelAtHand(shown, source, error="the folder's name is not UTF-8; rename it")
    try:
        return replace(_facts(folder, _state(folder)), name=name, source=source)
    except _Unusable as error:
        return ModelAtHand(name, source, error=str(error))
    except RatchetError as error:
        return ModelAtHand(name, source, error=error.message)
    except OSError as error:
        return ModelAtHand(name, source, error=f"it cannot be read: {error.strerror or type(error).__name__}")


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of each file: as long as they stay, so do the facts."""
    with os.scandir(folder) as entries:
        some = list(islice(entries, MAX_FILES + 1))
    if len(some) > MAX_FILES:
        raise _Unusable(f"it has more than {MAX_FILES} files")
    states = ((entry.name, entry.stat()) for entry in some if entry.is_file())
    return tuple(sorted((name, found.st_size, found.st_mtime_ns) for name, found in states))


@lru_cache(maxsize=2 * MAX_MODELS)
def _facts(folder: Path, state: tuple[tuple[str, int, int], ...]) -> ModelAtHand:
    sizes = {name: size for name, size, _ in state}
    if is_gguf_folder(folder):
        return _of_gguf(folder, sizes)
    weights = [name for name in sizes if name.endswith(".safetensors")]
    if "config.json" not in sizes or not weights:
        raise _Unusable(_what_is_missing(sizes))
    said = _object(folder, "config.json", MAX_CONFIG_BYTES)
    family = said.get("model_type")
    if not isinstance(family, str):
        raise _Unusable("its config.json does not say a model_type")
    if said.get("quantization_config"):
        raise _Unusable("its weights are quantized")
    if not {"tokenizer.json", "vocab.json"} & sizes.keys():
        raise _Unusable("it has no tokenizer.json, and no vocab.json and merges.txt")
    context = (said.get(name) for name in _CONTEXT)
    return ModelAtHand(
        name="",
        source="folder",
        family=family,
        size_bytes=sum(sizes[name] for name in weights),
        num_parameters=sum(_num_parameters(folder, name) for name in weights),
        max_context=next((number for number in context if type(number) is int and number > 0), None),
        has_chat_template=_has_chat_template(folder, sizes),
    )


def _of_gguf(folder: Path, sizes: dict[str, int]) -> ModelAtHand:
    names = [name for name in sizes if name.endswith(".gguf")]
    if len(names) != 1:
        raise _Unusable(f"it has {len(names)} GGUF files, and one is what a model is read from")
    header = read_gguf_header(folder / names[0], is_link_allowed=is_own_link(folder, names[0]))
    if header.architecture not in GGUF_ARCHITECTURES:
        known = ", ".join(GGUF_ARCHITECTURES)
        raise _Unusable(f"its GGUF file says architecture {header.architecture!r:.80}, and {known} can be read")
    context = header.setting("context_length")
    return ModelAtHand(
        name="",
        source="folder",
        family=header.architecture,
        size_bytes=sizes[names[0]],
        num_parameters=header.num_parameters,
        max_context=context if type(context) is int and context > 0 else None,
        has_chat_template=isinstance(header.settings.get("tokenizer.chat_template"), str)
        or _has_chat_template(folder, sizes),
    )


def _what_is_missing(sizes: dict[str, int]) -> str:
    if "adapter_config.json" in sizes:
        return "it holds adapters, which are no model without their base: export them with merge"
    if any(name.endswith(".bin") for name in sizes):
        return "its weights are pickles, which are never opened: convert them to safetensors"
    wanted = {"config.json": "config.json" in sizes, "*.safetensors": any(n.endswith(".safetensors") for n in sizes)}
    return f"it has no {' and no '.join(name for name, is_there in wanted.items() if not is_there)}"


def _num_parameters(folder: Path, name: str) -> int:
    """Of one file, by its header; the same that is checked when it is opened."""
    is_link_allowed = is_own_link(folder, name)
    check_tensor_file(folder / name, is_link_allowed=is_link_allowed)
    with open_plain(folder / name, is_link_allowed=is_link_allowed) as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(min(length, MAX_HEADER_BYTES)))
    return sum(math.prod(entry["shape"]) for tensor, entry in header.items() if tensor != "__metadata__")


def _has_chat_template(folder: Path, sizes: dict[str, int]) -> bool:
    if "chat_template.jinja" in sizes:
        return True
    if "tokenizer_config.json" not in sizes:
        return False
    return bool(_object(folder, "tokenizer_config.json", MAX_TOKENIZER_CONFIG_BYTES).get("chat_template"))


def _object(folder: Path, name: str, max_bytes: int) -> dict[str, Any]:
    try:
        said = json.loads(read_plain(folder / name, max_bytes, is_link_allowed=is_own_link(folder, name)))
    except CheckpointError as error:
        raise _Unusable(error.message) from None
    except (ValueError, RecursionError):
        raise _Unusable(f"its {name} is no JSON") from None
    if not isinstance(said, dict):
        raise _Unusable(f"its {name} is no object with settings")
    return said
