"""Puts a run together, fresh or resumed: the one way that the scripts, the worker's child and the tests all take."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.checkpointing import CheckpointStore, save_checkpoint
from core.config import TrainingConfig, config_to_dict
from core.data import TokenData, prepare_data_and_tokenizer, prepare_gpt2_data
from core.devices import select_device
from core.disk import Meanwhile
from core.errors import CheckpointMismatch, GenerationError
from core.events import CheckpointSaved, Emit
from core.exactness import versions
from core.legacy import restore_legacy_optimizer
from core.manifest import new_manifest
from core.models import LanguageModel
from core.models.gpt2 import GPT2Wrapper
from core.opening import base_folder
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
    run = RunState() if resume is None or mode is ResumeMode.WARM_START else RunState.of(resume)
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


def _model_and_data(
    config: TrainingConfig,
    source: SourceText,
    resume: CheckpointContent | None,
    models_root: Path | None,
    meanwhile: Meanwhile,
) -> tuple[LanguageModel, Tokenizer, TokenData]:
    if config.model_type == "gpt2":
        base = base_folder(config, resume, models_root)
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


def _check_source(source: SourceText, resume: CheckpointContent | None, mode: ResumeMode) -> None:
    if resume is None or mode is ResumeMode.WARM_START or resume["source_sha256"] is None:
        return
    if resume["source_sha256"] != source.sha256:
        raise CheckpointMismatch(
            f"source '{source.name}' is not the text that the checkpoint was trained on: its content has changed; "
            "put the old text back, or resume with mode warm_start"
        )


def _restore(resume: CheckpointContent, model: LanguageModel, optimizer: torch.optim.Optimizer) -> None:
    saved = resume["optimizer_state_dict"]
    if isinstance(saved, dict) and "moments" in saved:
        restore_optimizer(optimizer, model, saved)
    elif saved is not None:
        restore_legacy_optimizer(optimizer, saved)
    # Last of all: building a model and an optimizer draws from the generators.
    if resume["rng"]:
        restore_rng(resume["rng"])


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
            versions=versions(),
        )
        saved = save_checkpoint(store, manifest, partial(captured.write, meanwhile=meanwhile), meanwhile).manifest
        return CheckpointSaved(saved.step, saved.id, saved.name, saved.size_bytes, saved.train_loss, saved.val_loss)

    return save


def _hash_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
