"""Opens what has been trained: a checkpoint or a base to be talked to, a legacy file to become a checkpoint of ours."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from core.checkpointing import CheckpointStore, load_checkpoint, save_checkpoint
from core.config import TrainingConfig, config_to_dict, parse
from core.devices import select_device
from core.errors import CheckpointMismatch, CheckpointNotFound
from core.exactness import versions
from core.legacy import restore_legacy_optimizer
from core.manifest import Checkpoint, new_manifest, read_manifest
from core.models import LanguageModel
from core.models.base import find_base
from core.models.gpt2 import GPT2Wrapper
from core.parts import build_model, build_optimizer
from core.state import CheckpointContent, RunState, capture
from core.tokenizer import CharacterTokenizer, Tokenizer


def load_for_generation(content: CheckpointContent, models_root: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A checkpoint's model, ready to be asked, and its tokenizer.

    Raises:
        CheckpointMismatch, ModelUnavailable, ConfigError: said in one sentence.
    """
    config = parse(TrainingConfig, content["config"])
    if config.model_type == "gpt2":
        model = build_model(config, base=base_folder(config, content, models_root))
        assert isinstance(model, GPT2Wrapper)
        tokenizer: Tokenizer = model.tokenizer
    else:
        if not content["characters"]:
            raise CheckpointMismatch(f"checkpoint '{content['name']}' does not say which characters its tokens are")
        tokenizer = CharacterTokenizer(content["characters"])
        model = build_model(config, tokenizer.vocab_size)
    model.load_tensors(content["model_state_dict"])
    return model.to(select_device()).eval(), tokenizer


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
    # The older scripts kept no generators, and this process's are nobody's.
    captured = replace(captured, plain={**captured.plain, "rng": None})
    manifest = new_manifest(
        model=model.name,
        source=config.source,
        step=content["step"],
        end_step=content["end_step"],
        config=config_to_dict(config),
        versions=versions(),
    ).model_copy(update={"name": path.stem})
    return save_checkpoint(store, manifest, captured.write)


def load_base(name: str, models_root: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A base model as it is, ready to be asked, and its tokenizer."""
    model = GPT2Wrapper(find_base(name, models_root))
    return model.to(select_device()).eval(), model.tokenizer


def base_folder(config: TrainingConfig, resume: CheckpointContent | None, models_root: Path | None) -> Path:
    """A full checkpoint is its own base; adapters need the one they were trained on."""
    if resume and not config.use_lora and resume["path"].is_dir():
        return resume["path"]
    return find_base(config.base_model, models_root)
