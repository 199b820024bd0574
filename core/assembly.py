"""Puts a run together, fresh or resumed: the one way that the scripts, the worker's child and the tests all take."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from core.checkpointing import CheckpointStore
from core.config import TrainingConfig
from core.data import TokenData, prepare_data_and_tokenizer, prepare_gpt2_data
from core.devices import select_device
from core.disk import Meanwhile
from core.distributed import ALONE, Ranks
from core.errors import CheckpointMismatch, GenerationError
from core.events import Emit
from core.exactness import be_deterministic, departures, surroundings, warning_of
from core.fingerprints import check_base, of_alphabet, of_base
from core.legacy import restore_legacy_optimizer
from core.models import LanguageModel
from core.models.causal_lm import CausalLM
from core.moments import restore_optimizer
from core.opening import base_folder, hashes_of_base
from core.parts import Parts, build_model, build_optimizer
from core.precision import Precision
from core.resume_rules import ResumeMode
from core.saving import RunIdentity, RunSaver
from core.sources import SourceText
from core.state import (
    CheckpointContent,
    RunState,
    restore_rng,
    seed_everything,
)
from core.tokenizer import CharacterTokenizer, Tokenizer
from core.trainer import ShouldStop, Trainer


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
    ranks: Ranks = ALONE,
    meanwhile: Meanwhile = lambda: None,
) -> Trainer:
    """A trainer that is ready to run.

    Args:
        store: Where checkpoints go; without one nothing is kept.
        resume: The checkpoint to go on from; `warm_start` takes its weights and tokenizer alone.
        end_step: The last update to make; by default `training_steps` after where the run starts.
        ranks: This process among those that train together; all of them are given the same.
        meanwhile: Called between the stages, and again and again while a checkpoint is saved: a sign of life.

    Raises:
        CheckpointMismatch, ModelUnavailable, SourceTooShort, DeviceUnavailable: said in one sentence.
    """
    device = ranks.device if ranks.world_size > 1 else select_device(config.device)
    be_deterministic(device, config.deterministic)
    seed_everything(config.seed)
    _check_source(source, resume, mode)
    goes_on = resume if mode is not ResumeMode.WARM_START else None
    parts = _parts(config, source, resume, models_root, ranks, device, meanwhile)
    if goes_on:
        parts = replace(parts, cautions=_cautions(goes_on, parts))
        _restore(goes_on, parts)
    meanwhile()
    run = RunState.of(goes_on) if goes_on else RunState()
    run.end_step = end_step or run.step + config.training_steps
    saver = RunSaver(store, source, identity or RunIdentity(), meanwhile) if store else None
    trainer = Trainer(parts, run, emit, should_stop, saver)
    if goes_on:
        # This step is kept already; a run that stops before its first update needs no second copy.
        trainer.saved_step = run.step
    return trainer


def _parts(
    config: TrainingConfig,
    source: SourceText,
    resume: CheckpointContent | None,
    models_root: Path | None,
    ranks: Ranks,
    device: str,
    meanwhile: Meanwhile,
) -> Parts:
    """Model, with a checkpoint's weights if there is one, fresh optimizer, data."""
    base = base_folder(config, resume, models_root) if config.is_pretrained else None
    # Before it is read: what changes from here on is not what was trained on.
    hashes = hashes_of_base(config, base, partial(of_base, meanwhile=meanwhile)) if base and config.use_lora else {}
    if resume:
        check_base(config.base_model, resume["name"], resume["hashes"], hashes)
    meanwhile()
    model, tokenizer, tokens = _model_and_data(config, source, resume, base, meanwhile)
    if isinstance(tokenizer, CharacterTokenizer):
        hashes = {"tokenizer": of_alphabet(tokenizer.characters)}
    meanwhile()
    if resume:
        model.load_tensors(resume["model_state_dict"])
    model.to(device)
    meanwhile()
    optimizer = build_optimizer(config, model)
    if not ranks.leads:
        # All have built the same model from the same seed; dropout is to differ.
        seed_everything(config.seed + ranks.rank)
    block_size, precision = min(config.block_size, model.max_context), Precision(config.precision, device)
    return Parts(config, model, optimizer, tokenizer, tokens, device, block_size, precision, ranks, hashes)


def _model_and_data(
    config: TrainingConfig,
    source: SourceText,
    resume: CheckpointContent | None,
    base: Path | None,
    meanwhile: Meanwhile,
) -> tuple[LanguageModel, Tokenizer, TokenData]:
    if base:
        model = build_model(config, base=base)
        assert isinstance(model, CausalLM)
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


def _restore(resume: CheckpointContent, parts: Parts) -> None:
    saved = resume["optimizer_state_dict"]
    if isinstance(saved, dict) and "moments" in saved:
        restore_optimizer(parts.optimizer, parts.model, saved)
    elif saved is not None:
        restore_legacy_optimizer(parts.optimizer, saved)
    parts.precision.restore(resume["scale"])
    # Last of all: building a model and an optimizer draws from the generators.
    rank = parts.ranks.rank
    if resume["rng"] and rank < len(resume["rng"]):
        restore_rng(resume["rng"][rank], parts.device)


def _cautions(resume: CheckpointContent, parts: Parts) -> tuple[str, ...]:
    now = surroundings(parts.device, parts.ranks.world_size, parts.config.deterministic)
    has_generators = bool(resume["rng"])
    return tuple(warning_of(departures(resume["versions"], resume["surroundings"], now, has_generators=has_generators)))
