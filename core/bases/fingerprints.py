"""What identifies the base that adapters were trained on: with another tokenizer, shape or weight it is none. Light."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from core.bases.gguf_file import gguf_files, is_gguf_folder, read_gguf_header
from core.errors import CheckpointMismatch, Difference, RatchetError
from core.machine.disk import Meanwhile, digest, nothing

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.model")
"""What decides which ids a text becomes; notes of the library that wrote them do not."""

SHAPE_FILES = ("config.json",)


def of_base(folder: Path, meanwhile: Meanwhile = nothing) -> dict[str, str]:
    """SHA-256 of a base's `tokenizer`, `architecture` and `base_weights`; the last takes seconds for large ones.

    Raises:
        OSError: a file cannot be read.
    """
    weights = sorted(path.name for path in folder.glob("*.gguf" if is_gguf_folder(folder) else "*.safetensors"))
    return {**of_small_files(folder), "base_weights": _of_files(folder, weights, meanwhile)}


def of_small_files(folder: Path) -> dict[str, str]:
    """Those that take no time: `tokenizer` and `architecture`.

    Raises:
        OSError: a file cannot be read.
    """
    found = {"tokenizer": _of_files(folder, TOKENIZER_FILES), "architecture": _of_files(folder, SHAPE_FILES)}
    # A GGUF file keeps both in its header. One that cannot be read is told when the model is.
    with suppress(RatchetError):
        if is_gguf_folder(folder):
            found["architecture"] = read_gguf_header(gguf_files(folder)[0]).sha256
    return found


def of_alphabet(characters: Iterable[str]) -> str:
    """SHA-256 of a character tokenizer: its characters in the order of their ids."""
    return hashlib.sha256("".join(characters).encode()).hexdigest()


def _of_files(folder: Path, names: Iterable[str], meanwhile: Meanwhile = nothing) -> str:
    found = hashlib.sha256()
    for name in names:
        if (folder / name).is_file():
            found.update(f"{name} {digest(folder / name, meanwhile)}\n".encode())
    return found.hexdigest()


def check_base(base: str, checkpoint: str, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Adapters say nothing on another base; those of the first release, and legacy files, do not tell theirs.

    Args:
        base: Its name, as the configuration has it.
        checkpoint: The name of the adapters' checkpoint.
        saved: The hashes of that checkpoint.
        now: Those of the base that is there, as many as were taken.

    Raises:
        CheckpointMismatch: names what differs.
    """
    changed = [Difference(name, saved[name], now[name]) for name in now if saved.get(name, now[name]) != now[name]]
    if not changed:
        return
    what = " and ".join(item.field.removeprefix("base_") for item in changed)
    raise CheckpointMismatch(
        f"base model '{base}' is not what the adapters of checkpoint '{checkpoint}' were trained on: its {what} "
        "changed; put the old files back, or start a fresh run on the new ones",
        field="base_model",
        differences=changed,
        forbidden=changed,
    )
