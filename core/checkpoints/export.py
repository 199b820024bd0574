"""What has been trained, as a Hugging Face folder: plain `from_pretrained` loads it, and so does a run as its base."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.bases.fingerprints import of_base, of_small_files
from core.checkpoints.manifest import read_manifest
from core.checkpoints.opening import open_for_generation
from core.config import PRETRAINED
from core.errors import ExportUnsupported, ModelExists
from core.machine import disk
from core.models.causal_lm import CausalLM
from core.tokens.tokenizer import Tokenizer

STAGING_PREFIX = "tmp-export-"
ABANDONED_SECONDS = 86_400.0
"""No export takes a day: what is staged for longer was left by a process that was killed."""

NAME = re.compile(r"(?!tmp-|.*\.\.)[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
"""What a request may name as `base_model`."""

_SMALL_FILES_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Exported:
    """A folder below the models root; `kind` is `model`, or `adapter` for adapters that need their base."""

    name: str
    path: str
    size_bytes: int
    kind: str


def export(checkpoint: Path, models_root: Path, name: str | None = None, *, merge: bool = False) -> Exported:
    """Write a checkpoint's model below the models root, whole or not at all.

    Logits are those of the checkpoint: to the last bit, or within 1e-5 where adapters were merged into their base.
    Adapters that were trained on a quantized base are put out for, or merged into, the base as it is.

    Args:
        checkpoint: A published folder; what is taken of it is verified.
        name: Of the new folder; by default the checkpoint's, without its prefix.
        merge: Add adapters to their base's weights, so that the folder needs no other.

    Raises:
        ExportUnsupported: Hugging Face has no class for this model, or the name is none.
        ModelExists: there is something of that name.
        CheckpointError, ModelUnavailable: the checkpoint, or its base, cannot be opened.
        DiskFull, StorageError: the disk refused it, and nothing of it is left there.
    """
    manifest = read_manifest(checkpoint).manifest
    if manifest.config.get("model_type") not in PRETRAINED:
        raise ExportUnsupported(
            f"checkpoint '{manifest.name}' is a model from scratch, for which Hugging Face has no class: "
            "download its folder instead"
        )
    merges = merge and bool(manifest.config.get("use_lora"))
    name = name or _name_of(manifest.name, merges)
    if not NAME.fullmatch(name):
        raise ExportUnsupported(f"a model cannot be named {name!r}: letters, digits, '.', '_' and '-', and no 'tmp-'")
    _refuse_taken(models_root, name)
    # What is merged cannot be told apart from its base any more, so that has to be the true one to the last byte.
    fingerprints = of_base if merges else of_small_files
    model, tokenizer = open_for_generation(checkpoint, models_root, fingerprints, whole_base=True)
    assert isinstance(model, CausalLM)
    if merges:
        model.merge()
    _publish(models_root, name, lambda folder: _write(folder, model, tokenizer), _size_of(model))
    size = sum(path.stat().st_size for path in (models_root / name).iterdir())
    return Exported(name, name, size, "adapter" if model.use_lora else "model")


def _name_of(checkpoint: str, merged: bool) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", checkpoint.removeprefix("checkpoint_"))[:180]
    return f"{plain}_merged" if merged else plain


def _size_of(model: CausalLM) -> int:
    return sum(tensor.nbytes for tensor in model.tensors().values()) + _SMALL_FILES_BYTES


def _write(folder: Path, model: CausalLM, tokenizer: Tokenizer) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.tensors().items()}
    save_file(tensors, folder / model.weights_file, metadata={"format": "pt"})
    model.describe(folder)
    # The library keeps what it writes to its owner; these are for whoever may read the others.
    shutil.copymode(next(folder.glob("*config.json")), folder / model.weights_file)
    tokenizer.save(folder)


def _publish(root: Path, name: str, write: Callable[[Path], None], size_bytes: int) -> None:
    """Staged, synced, renamed: from one moment to the next it is there."""
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    staged = root / f"{STAGING_PREFIX}{secrets.token_hex(5)}"
    try:
        staged.mkdir()
        disk.check_room(staged, size_bytes)
        write(staged)
        for path in staged.iterdir():
            disk.sync_file(path)
        disk.sync_folder(staged)
        _refuse_taken(root, name)
        staged.rename(root / name)
        disk.sync_folder(root)
    except BaseException as error:
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(error, OSError) and (root / name).exists():
            raise _taken(name) from None
        refusal = disk.refusal_of(error, name)
        if refusal is None:
            raise
        said = f"model '{name}' could not be written below the models root"
        raise type(refusal)(f"{said}: make room there, then ask again") from error


def _sweep(root: Path) -> None:
    for left in root.glob(f"{STAGING_PREFIX}*"):
        if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _refuse_taken(root: Path, name: str) -> None:
    if os.path.lexists(root / name):
        raise _taken(name)


def _taken(name: str) -> ModelExists:
    return ModelExists(f"there is a model '{name}' already: give another name", field="name")
