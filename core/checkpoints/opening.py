"""Opens what has been trained: a checkpoint or a base to be talked to, a legacy file to become a checkpoint of ours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from core.bases.fingerprints import check_base, of_small_files
from core.checkpointing import CheckpointStore, load_checkpoint, save_checkpoint, verify
from core.checkpoints.exactness import versions
from core.checkpoints.legacy import restore_legacy_optimizer
from core.checkpoints.manifest import Checkpoint, new_manifest, read_manifest
from core.checkpoints.state_file import HISTORY_FILE, STATE_FILE
from core.checkpoints.weights import load_tensors
from core.config import TrainingConfig, config_to_dict, parse
from core.devices import select_device
from core.errors import CheckpointCorrupt, CheckpointMismatch, CheckpointNotFound, ModelUnavailable
from core.models import LanguageModel
from core.models.base import find_base
from core.models.causal_lm import CausalLM
from core.optimization.averaging import AVERAGES_FILE, averaged
from core.parts import build_model, build_optimizer
from core.state import OPTIMIZER_FILE, CheckpointContent, RunState, capture
from core.tokens.tokenizer import BPE_FILE, CHARACTERS_FILE, Tokenizer, load_own_tokenizer

_WEIGHTS = "model.safetensors"
_ADAPTERS = "adapter_model.safetensors"
_NOT_ASKED_FOR = frozenset({OPTIMIZER_FILE, STATE_FILE, HISTORY_FILE})
"""Two thirds of a full checkpoint's bytes, which nothing but a run that goes on looks at."""

Fingerprints = Callable[[Path], dict[str, str]]
"""Of a base's folder, see `core.bases.fingerprints`."""


def open_for_generation(
    path: Path,
    models_root: Path | None = None,
    fingerprints: Fingerprints = of_small_files,
    *,
    whole_base: bool = False,
) -> tuple[LanguageModel, Tokenizer]:
    """The model of a checkpoint folder or of a legacy file, ready to be asked, and its tokenizer.

    Of a folder, only what answers a prompt is verified and read, and weights stay in their file's pages.

    Args:
        fingerprints: What of the base that adapters belong to is compared with what they were trained on; by default
            what takes no time.
        whole_base: Read the base as it is, even if the adapters were trained on it quantized.

    Raises:
        CheckpointError, ModelUnavailable, ConfigError: said in one sentence.
    """
    if path.is_file():
        return load_for_generation(load_checkpoint(path), models_root)
    checkpoint = read_manifest(path)
    config = parse(TrainingConfig, checkpoint.manifest.config)
    if whole_base:
        config = config.model_copy(update={"quantization": "none"})
    if not config.is_pretrained:
        _verify(checkpoint, {_WEIGHTS, BPE_FILE if config.tokenizer == "bpe" else CHARACTERS_FILE})
        tokenizer = load_own_tokenizer(path)
        return _from_scratch(config, tokenizer, _answering(checkpoint, _WEIGHTS)), tokenizer
    _verify(checkpoint, {_ADAPTERS} if config.use_lora else {_WEIGHTS, "config.json"})
    if not config.use_lora:
        model, words = _pretrained(config, path)
        if AVERAGES_FILE in checkpoint.manifest.files:
            model.load_tensors(_answering(checkpoint, _WEIGHTS))
        return _ready(model), words
    base = find_base(config.base_model, models_root)
    check_base(
        config.base_model,
        checkpoint.manifest.name,
        checkpoint.manifest.hashes,
        hashes_of_base(config, base, fingerprints),
    )
    model, words = _pretrained(config, base)
    model.load_tensors(_answering(checkpoint, _ADAPTERS))
    return _ready(model), words


def load_for_generation(content: CheckpointContent, models_root: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """The same of a checkpoint that is in memory.

    Raises:
        CheckpointMismatch, ModelUnavailable, ConfigError: said in one sentence.
    """
    config = parse(TrainingConfig, content["config"])
    if config.is_pretrained:
        base = base_folder(config, content, models_root)
        if config.use_lora:
            check_base(
                config.base_model, content["name"], content["hashes"], hashes_of_base(config, base, of_small_files)
            )
        model, words = _pretrained(config, base)
        model.load_tensors(content["model_state_dict"])
        return _ready(model), words
    tokenizer = content["tokenizer"]
    if tokenizer is None:
        raise CheckpointMismatch(f"checkpoint '{content['name']}' does not say which characters its tokens are")
    return _from_scratch(config, tokenizer, content["model_state_dict"]), tokenizer


def adopt_legacy(path: Path, store: CheckpointStore, models_root: Path | None = None) -> Checkpoint:
    """Publish a legacy `.pt` file as a checkpoint of our own under its name; if that was done before, find it.

    From then on it is resumed from, talked to and exported like any other; the file stays as it is.

    Raises:
        CheckpointError, ModelUnavailable, ConfigError: said in one sentence.
    """
    with suppress(CheckpointNotFound):
        return read_manifest(store.root / path.stem)
    content = load_checkpoint(path)
    config = parse(TrainingConfig, content["config"])
    model, tokenizer = load_for_generation(content, models_root)
    optimizer = build_optimizer(config, model)
    if content["optimizer_state_dict"] is not None:
        restore_legacy_optimizer(optimizer, content["optimizer_state_dict"])
    run = RunState.of(content)
    captured = capture(model, optimizer, tokenizer, run)
    said = config_to_dict(config)
    if "method" not in content["config"]:
        # It learnt its source as text, whatever that is called: see `core.checkpoints.before_rows`.
        del said["method"]
    manifest = new_manifest(
        model=model.name,
        source=config.source,
        step=content["step"],
        end_step=content["end_step"],
        config=said,
        versions=versions(),
    ).model_copy(update={"name": path.stem})
    return save_checkpoint(store, manifest, captured.write, size_bytes=captured.size_bytes)


def load_base(name: str, models_root: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A base model as it is, ready to be asked, and its tokenizer."""
    model = CausalLM(find_base(name, models_root), mapped=True)
    return _ready(model), model.tokenizer


def base_folder(config: TrainingConfig, resume: CheckpointContent | None, models_root: Path | None) -> Path:
    """A full checkpoint is its own base; adapters, and legacy files, need the one they were trained on."""
    if resume and not config.use_lora and resume["path"].is_dir():
        return resume["path"]
    return find_base(config.base_model, models_root)


def hashes_of_base(config: TrainingConfig, base: Path, fingerprints: Fingerprints) -> dict[str, str]:
    """What `core.bases.fingerprints` finds in a base's folder.

    Raises:
        ModelUnavailable: a file of it cannot be read.
    """
    try:
        return fingerprints(base)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelUnavailable(
            f"base model '{config.base_model}' cannot be read: {reason}", field="base_model"
        ) from None


def _verify(checkpoint: Checkpoint, needed: set[str]) -> None:
    """Compare all files but those that nobody asks for with the manifest, which has to list those that are needed."""
    manifest = checkpoint.manifest
    if missing := sorted(needed - manifest.files.keys()):
        raise CheckpointCorrupt(f"checkpoint '{manifest.name}' lacks its file {missing[0]}")
    asked_for = {name: entry for name, entry in manifest.files.items() if name not in _NOT_ASKED_FOR}
    verify(replace(checkpoint, manifest=manifest.model_copy(update={"files": asked_for})))


def _answering(checkpoint: Checkpoint, weights: str) -> dict[str, Tensor]:
    """What a checkpoint answers with: its weights, or the averages of them where it keeps some."""
    tensors = load_tensors(checkpoint.path / weights)
    if AVERAGES_FILE not in checkpoint.manifest.files:
        return tensors
    return averaged(tensors, load_tensors(checkpoint.path / AVERAGES_FILE))


def _pretrained(config: TrainingConfig, base: Path) -> tuple[LanguageModel, Tokenizer]:
    model = build_model(config, base=base, mapped=True)
    assert isinstance(model, CausalLM)
    return model, model.tokenizer


def _from_scratch(config: TrainingConfig, tokenizer: Tokenizer, tensors: dict[str, Tensor]) -> LanguageModel:
    # Built without memory: random weights would be made only to be thrown away.
    with torch.device("meta"):
        model = build_model(config, tokenizer.vocab_size)
    model.load_tensors(tensors)
    return _ready(model)


def _ready(model: LanguageModel) -> LanguageModel:
    return model.to(select_device()).eval()
