"""Puts a run together, fresh or resumed: the one way that the scripts, the worker's child and the tests all take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from core.bases.fingerprints import check_base, of_base
from core.checkpointing import CheckpointStore
from core.checkpoints.data_place import what_becomes_of_rows
from core.checkpoints.exactness import be_deterministic, departures, surroundings, warning_of
from core.checkpoints.legacy import restore_legacy_optimizer
from core.checkpoints.opening import base_folder, hashes_of_base
from core.checkpoints.resume_rules import ResumeMode
from core.checkpoints.saving import RunIdentity, RunSaver
from core.config import TrainingConfig, config_to_dict, parse
from core.devices import select_device
from core.distributed import ALONE, Ranks
from core.errors import CheckpointMismatch, ConfigError, GenerationError, StopAsked
from core.events import Emit
from core.machine.disk import Meanwhile, nothing
from core.models import LanguageModel
from core.models.base import find_base
from core.models.causal_lm import CausalLM
from core.monitoring.evaluation import ShouldStop
from core.objectives import NextToken, Objective, Preference
from core.optimization.averaging import Averages
from core.optimization.moments import restore_optimizer
from core.optimization.precision import Precision
from core.optimization.schedules import num_rising_steps
from core.optimization.updates import build_optimizer, freeze
from core.parts import Parts, build_model
from core.sources.corpus import Corpus
from core.sources.files import SourceText
from core.sources.methods import method_of
from core.state import (
    CheckpointContent,
    RunState,
    restore_rng,
    seed_everything,
)
from core.tokens.batches import Batches
from core.tokens.encoding import Encoder, fingerprint, first_kind, own_tokenizer
from core.tokens.preparation import prepare
from core.tokens.tokenizer import PretrainedTokenizer, Tokenizer
from core.trainer import Trainer


def assemble(
    config: TrainingConfig,
    sources: Corpus | SourceText,
    emit: Emit,
    should_stop: ShouldStop,
    *,
    store: CheckpointStore | None = None,
    identity: RunIdentity | None = None,
    resume: CheckpointContent | None = None,
    mode: ResumeMode = ResumeMode.EXTEND,
    start_step: int | None = None,
    end_step: int | None = None,
    models_root: Path | None = None,
    cache: Path | None = None,
    ranks: Ranks = ALONE,
    meanwhile: Meanwhile = nothing,
) -> Trainer:
    """A trainer that is ready to run.

    Args:
        sources: What it learns from.
        store: Where checkpoints go; without one nothing is kept.
        resume: The checkpoint to go on from; `warm_start` takes its weights and tokenizer alone.
        start_step: Where the run began, if this is not its first attempt; by default where it starts now.
        end_step: The last update to make; by default `training_steps` after where the run began. `num_epochs` may end
            it earlier.
        cache: Where files of tokens are kept; None keeps none.
        ranks: This process among those that train together; all of them are given the same.
        meanwhile: Called between the stages, and again and again while a checkpoint is saved: a sign of life.

    Raises:
        CheckpointMismatch, ModelUnavailable, SourceTooShort, DeviceUnavailable: said in one sentence.
    """
    device = ranks.device if ranks.world_size > 1 else select_device(config.device)
    be_deterministic(device, config.deterministic)
    seed_everything(config.seed)
    corpus = sources if isinstance(sources, Corpus) else Corpus.of_one(sources)
    _check_sources(corpus, resume, mode)
    goes_on = resume if mode is not ResumeMode.WARM_START else None
    encoding = _Encoding(cache, emit, partial(_unless_stopped, meanwhile, should_stop))
    parts = _parts(config, corpus, resume, mode, models_root, ranks, device, encoding)
    if goes_on:
        parts = replace(parts, cautions=(*_cautions(goes_on, parts), *_moved(goes_on, parts)))
        _restore(goes_on, parts)
    meanwhile()
    run, start_step = _begun(goes_on, parts, start_step, end_step)
    saver = RunSaver(store, corpus, identity or RunIdentity(), meanwhile) if store else None
    # A step that was gone on from is kept already; a run that stops before its first update needs no second copy.
    return Trainer(parts, run, emit, should_stop, saver, start_step, saved_step=run.step if goes_on else -1)


@dataclass(frozen=True, slots=True)
class _Encoding:
    """Where tokens are kept, and who is told meanwhile."""

    cache: Path | None
    emit: Emit
    meanwhile: Meanwhile


def _parts(
    config: TrainingConfig,
    corpus: Corpus,
    resume: CheckpointContent | None,
    mode: ResumeMode,
    models_root: Path | None,
    ranks: Ranks,
    device: str,
    encoding: _Encoding,
) -> Parts:
    """Model, with a checkpoint's weights if there is one, fresh optimizer, data."""
    method = method_of({part.source.name: first_kind(part) for part in corpus.parts}, config)
    _check_preferences(method, resume, mode)
    base, original, hashes = _bases(config, method, resume, models_root, encoding.meanwhile)
    encoding.meanwhile()
    model, tokenizer = _model(config, corpus, resume, base, encoding.meanwhile)
    if not isinstance(tokenizer, PretrainedTokenizer):
        hashes = {"tokenizer": fingerprint(tokenizer)}
    encoding.meanwhile()
    if resume:
        model.load_tensors(resume["model_state_dict"])
    freeze(model, config.freeze_layers)
    model.to(device)
    encoding.meanwhile()
    block_size = min(config.block_size, model.max_context)
    data = _data(config, corpus, method, model, tokenizer, block_size, encoding)
    averages = Averages(model, config.ema_decay) if config.ema_decay else None
    objective = _objective(config, method, original, device)
    optimizer = build_optimizer(config, model)
    if not ranks.leads:
        # All have built the same model from the same seed; dropout is to differ.
        seed_everything(config.seed + ranks.rank)
    return Parts(
        config,
        model,
        optimizer,
        tokenizer,
        data,
        objective,
        device,
        block_size,
        method,
        Precision(config.precision, device),
        ranks,
        hashes,
        averages,
    )


def _bases(
    config: TrainingConfig,
    method: str,
    resume: CheckpointContent | None,
    models_root: Path | None,
    meanwhile: Meanwhile,
) -> tuple[Path | None, Path | None, dict[str, str]]:
    """Where weights and tokenizer are read, the base itself if what is learnt refers to it, and that one's hashes.

    Raises:
        ModelUnavailable: a folder cannot be had.
        CheckpointMismatch: the base is not the one that the checkpoint was trained on.
    """
    base = base_folder(config, resume, models_root) if config.is_pretrained else None
    is_needed = base and (config.use_lora or method == "dpo")
    original = find_base(config.base_model, models_root) if is_needed else None
    # Before it is read: what changes from here on is not what was trained on.
    hashes = hashes_of_base(config, original, partial(of_base, meanwhile=meanwhile)) if original else {}
    if resume:
        check_base(config.base_model, resume["name"], resume["hashes"], hashes)
    return base, original, hashes


def _model(
    config: TrainingConfig,
    corpus: Corpus,
    resume: CheckpointContent | None,
    base: Path | None,
    meanwhile: Meanwhile,
) -> tuple[LanguageModel, Tokenizer]:
    if base:
        model = build_model(config, base=base)
        assert isinstance(model, CausalLM)
        return model, model.tokenizer
    known = resume["tokenizer"] if resume else None
    if known is None:
        known = own_tokenizer(config, corpus, meanwhile)
    return build_model(config, known.vocab_size), known


def _data(
    config: TrainingConfig,
    corpus: Corpus,
    method: str,
    model: LanguageModel,
    tokenizer: Tokenizer,
    block_size: int,
    encoding: _Encoding,
) -> Batches:
    encoder = Encoder(tokenizer, method == "lm", encoding.cache, encoding.emit, encoding.meanwhile)
    may_pack = method != "sft" or not config.packing or model.supports_segments
    try:
        return prepare(corpus, method, config, encoder, block_size, may_pack=may_pack)
    except GenerationError as error:
        raise CheckpointMismatch(f"source '{corpus.name}' does not fit the checkpoint: {error}") from None


def _objective(config: TrainingConfig, method: str, original: Path | None, device: str) -> Objective:
    if method != "dpo":
        return NextToken()
    if config.use_lora:
        return Preference(config.dpo_beta, None)
    reference = build_model(config, base=original, mapped=True).to(device).eval()
    return Preference(config.dpo_beta, reference.requires_grad_(False))


def _begun(
    goes_on: CheckpointContent | None, parts: Parts, start_step: int | None, end_step: int | None
) -> tuple[RunState, int]:
    """Where the run is, with its end, and where it began."""
    run = RunState.of(goes_on) if goes_on else RunState()
    start_step = run.step if start_step is None else start_step
    if goes_on and goes_on["config"].get("batch_size", parts.config.batch_size) != parts.config.batch_size:
        # Another batch may fit as it is. In how many parts one is computed decides its last bits, so else it stays.
        run.num_parts = 1
    run.end_step = _end_step(parts, start_step, end_step or start_step + parts.config.training_steps)
    if run.num_rising is None:
        run.num_rising = _num_rising(goes_on, parts.config, run.end_step)
    return run, start_step


def _num_rising(goes_on: CheckpointContent | None, config: TrainingConfig, end_step: int) -> int:
    """How long the warm-up is: that of a run which an earlier release began is found as it was found there."""
    if goes_on is None:
        return num_rising_steps(config, end_step)
    return num_rising_steps(parse(TrainingConfig, goes_on["config"]), goes_on["end_step"] or end_step)


def _unless_stopped(meanwhile: Meanwhile, should_stop: ShouldStop) -> None:
    meanwhile()
    if should_stop():
        raise StopAsked("the run was stopped before its first step")


def _check_preferences(method: str, resume: CheckpointContent | None, mode: ResumeMode) -> None:
    if method == "dpo" and resume and mode is ResumeMode.WARM_START:
        # What it is compared with would be the base, and not what it begins as.
        said = "preferences are learnt against base_model: export the checkpoint, merged, and name that as base_model"
        raise ConfigError([("mode", said)])


def _moved(resume: CheckpointContent, parts: Parts) -> tuple[str, ...]:
    """Rows of one source come in their order, so batches of another size begin at another place."""
    if parts.method == "lm" or len(parts.config.shares) > 1:
        return ()
    said = what_becomes_of_rows(resume["config"], config_to_dict(parts.config), resume["step"])
    return (said,) if said else ()


def _end_step(parts: Parts, start_step: int, end_step: int) -> int:
    """Where the run ends: after its steps or its epochs, whichever comes first."""
    num_epochs = parts.config.num_epochs
    if num_epochs is None:
        return end_step
    return min(end_step, start_step + math.ceil(num_epochs * parts.steps_per_epoch))


def _check_sources(corpus: Corpus, resume: CheckpointContent | None, mode: ResumeMode) -> None:
    if resume is None or mode is ResumeMode.WARM_START or resume["source_sha256"] is None:
        return
    if resume["source_sha256"] != corpus.sha256:
        raise CheckpointMismatch(
            f"source '{corpus.name}' is not the text that the checkpoint was trained on: its content has changed; "
            "put the old text back, or resume with mode warm_start"
        )


def _restore(resume: CheckpointContent, parts: Parts) -> None:
    saved = resume["optimizer_state_dict"]
    if isinstance(saved, dict) and "moments" in saved:
        restore_optimizer(parts.optimizer, parts.model, saved)
    elif saved is not None:
        restore_legacy_optimizer(parts.optimizer, saved)
    parts.precision.restore(resume["scale"])
    if parts.averages and resume["averages"]:
        parts.averages.load(resume["averages"])
    # Last of all: building a model and an optimizer draws from the generators.
    rank = parts.ranks.rank
    if resume["rng"] and rank < len(resume["rng"]):
        restore_rng(resume["rng"][rank], parts.device)


def _cautions(resume: CheckpointContent, parts: Parts) -> tuple[str, ...]:
    now = surroundings(parts.device, parts.ranks.world_size, parts.config.deterministic)
    has_generators = bool(resume["rng"])
    return tuple(warning_of(departures(resume["versions"], resume["surroundings"], now, has_generators=has_generators)))
