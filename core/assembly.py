"""Puts a run together, fresh or resumed: the one way that the scripts, the worker's child and the tests all take."""

from __future__ import annotations

import hashlib
import json
import platform
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from core.checkpointing import (
    Checkpoint,
    CheckpointStore,
    load_checkpoint,
    new_manifest,
    read_manifest,
    save_checkpoint,
)
from core.config import TrainingConfig, config_to_dict, parse
from core.data import TokenData, prepare_data_and_tokenizer, prepare_gpt2_data
from core.devices import select_device
from core.disk import Meanwhile
from core.errors import CheckpointMismatch, CheckpointNotFound, GenerationError
from core.events import CheckpointSaved, Emit
from core.models import LanguageModel
from core.models.base import find_base
from core.models.gpt2 import GPT2Wrapper
from core.parts import Parts, build_model, build_optimizer
from core.resume_rules import ResumeMode
from core.sources import SourceText
from core.state import (
    CheckpointContent,
    RunState,
    capture,
    restore_optimizer,
    restore_rng,
    seed_everything,
)
from core.tokenizer import CharacterTokenizer, Tokenizer
from core.trainer import SaveRun, ShouldStop, Trainer


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who a run is, as its checkpoints will say."""

    job_id: str | None = None
    attempt: int = 0
    fence: int = 0
    parent: str | None = None


def assemble(
    config: TrainingConfig,
    source: SourceText,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    store: CheckpointStore | None = None,
    identity: RunIdentity | None = None,
    resume: CheckpointContent | None = None,
    mode: ResumeMode = ResumeMode.EXTEND,
    end_step: int | None = None,
    models_root: Path | None = None,
    meanwhile: Meanwhile = lambda: None,
) -> Trainer:
    """A trainer that is ready to run.

    Args:
        store: Where checkpoints go; without one nothing is kept.
        resume: The checkpoint to go on from; `warm_start` takes its weights and tokenizer alone.
        end_step: The last update to make; by default `training_steps` after where the run starts.
        meanwhile: Called between the stages, and again and again while a checkpoint is saved: a sign of life.

    Raises:
        CheckpointMismatch, ModelUnavailable, SourceTooShort, DeviceUnavailable: said in one sentence.
    """
    device = select_device(config.device)
    seed_everything(config.seed)
    _check_source(source, resume, mode)
    model, tokenizer, tokens = _model_and_data(config, source, resume, models_root, meanwhile)
    meanwhile()
    if resume:
        model.load_tensors(resume["model_state_dict"])
    model.to(device)
    meanwhile()
    optimizer = build_optimizer(config, model)
    run = _run_state(resume, mode)
    run.end_step = end_step or run.step + config.training_steps
    if resume and mode is not ResumeMode.WARM_START:
        _restore(resume, model, optimizer)
    meanwhile()
    parts = Parts(config, model, optimizer, tokenizer, tokens, device, min(config.block_size, model.max_context))
    save = _saver(store, source, identity or RunIdentity(), meanwhile) if store else None
    trainer = Trainer(parts, run, emit, should_stop, save)
    if resume and mode is not ResumeMode.WARM_START:
        # This step is kept already; a run that stops before its first update needs no second copy.
        trainer.saved_step = run.step
    return trainer


def load_for_generation(content: CheckpointContent, models_root: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A checkpoint's model, ready to be asked, and its tokenizer.

    Raises:
        CheckpointMismatch, ModelUnavailable, ConfigError: said in one sentence.
    """
    config = parse(TrainingConfig, content["config"])
    if config.model_type == "gpt2":
        model = build_model(config, base=_base_folder(config, content, models_root))
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
        _restore_legacy_optimizer(optimizer, content["optimizer_state_dict"])
    run = _run_state(content, ResumeMode.EXTEND)
    captured = capture(model, optimizer, tokenizer, run)
    # The older scripts kept no generators, and this process's are nobody's.
    captured = replace(captured, plain={**captured.plain, "rng": None})
    manifest = new_manifest(
        model=model.name,
        source=config.source,
        step=content["step"],
        end_step=content["end_step"],
        config=config_to_dict(config),
        versions=_versions(),
    ).model_copy(update={"name": path.stem})
    return save_checkpoint(store, manifest, captured.write)


def load_base(name: str, models_root: Path | None = None) -> tuple[LanguageModel, Tokenizer]:
    """A base model as it is, ready to be asked, and its tokenizer."""
    model = GPT2Wrapper(find_base(name, models_root))
    return model.to(select_device()).eval(), model.tokenizer


def _model_and_data(
    config: TrainingConfig,
    source: SourceText,
    resume: CheckpointContent | None,
    models_root: Path | None,
    meanwhile: Meanwhile,
) -> tuple[LanguageModel, Tokenizer, TokenData]:
    if config.model_type == "gpt2":
        base = _base_folder(config, resume, models_root)
        meanwhile()
        model = build_model(config, base=base)
        assert isinstance(model, GPT2Wrapper)
        meanwhile()
        block_size = min(config.block_size, model.max_context)
        return model, model.tokenizer, prepare_gpt2_data(model.encode, source.text, block_size)
    known = CharacterTokenizer(resume["characters"]) if resume and resume["characters"] else None
    try:
        prepared = prepare_data_and_tokenizer(config, source.text, "from_scratch", known)
    except GenerationError as error:
        raise CheckpointMismatch(f"source '{source.name}' does not fit the checkpoint: {error}") from None
    meanwhile()
    return build_model(config, prepared.vocab_size), prepared.tokenizer, prepared.tokens


def _base_folder(config: TrainingConfig, resume: CheckpointContent | None, models_root: Path | None) -> Path:
    """A full checkpoint is its own base; adapters need the one they were trained on."""
    if resume and not config.use_lora and resume["path"].is_dir():
        return resume["path"]
    return find_base(config.base_model, models_root)


def _check_source(source: SourceText, resume: CheckpointContent | None, mode: ResumeMode) -> None:
    if resume is None or mode is ResumeMode.WARM_START or resume["source_sha256"] is None:
        return
    if resume["source_sha256"] != source.sha256:
        raise CheckpointMismatch(
            f"source '{source.name}' is not the text that the checkpoint was trained on: its content has changed; "
            "put the old text back, or resume with mode warm_start"
        )


def _run_state(resume: CheckpointContent | None, mode: ResumeMode) -> RunState:
    if resume is None or mode is ResumeMode.WARM_START:
        return RunState()
    return RunState(**{**resume["run"], "step": resume["step"]})


def _restore(resume: CheckpointContent, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    saved = resume["optimizer_state_dict"]
    if isinstance(saved, dict) and "moments" in saved:
        restore_optimizer(optimizer, model, saved)
    elif saved is not None:
        _restore_legacy_optimizer(optimizer, saved)
    # Last of all: building a model and an optimizer draws from the generators.
    if resume["rng"]:
        restore_rng(resume["rng"])


def _restore_legacy_optimizer(optimizer: torch.optim.Optimizer, saved: Any) -> None:
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


def _saver(store: CheckpointStore, source: SourceText, identity: RunIdentity, meanwhile: Meanwhile) -> SaveRun:
    def save(trainer: Trainer) -> CheckpointSaved:
        parts, run = trainer.parts, trainer.run
        captured = capture(parts.model, parts.optimizer, parts.tokenizer, run)
        meanwhile()
        config = config_to_dict(parts.config)
        # Only what was measured at this very step is this checkpoint's.
        last = run.last_evaluation if run.last_evaluation and run.last_evaluation["step"] == run.step else {}
        manifest = new_manifest(
            model=parts.model.name,
            source=source.name,
            step=run.step,
            end_step=run.end_step,
            config=config,
            train_loss=last.get("train_loss"),
            val_loss=last.get("val_loss"),
            job_id=identity.job_id,
            attempt=identity.attempt,
            fence=identity.fence,
            parent=identity.parent,
            hashes={"config": _hash_of(config), "source": source.sha256},
            versions=_versions(),
        )
        saved = save_checkpoint(store, manifest, partial(captured.write, meanwhile=meanwhile), meanwhile).manifest
        return CheckpointSaved(saved.step, saved.id, saved.name, saved.size_bytes, saved.train_loss, saved.val_loss)

    return save


def _hash_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for name in ("ratchet", "transformers", "peft"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
