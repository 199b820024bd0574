"""Puts a run together, fresh or resumed: the one way that the scripts, the worker's child and the tests all take."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from core.checkpointing import CheckpointStore, save_checkpoint
from core.config import TrainingConfig, config_to_dict
from core.data import TokenData, prepare_data_and_tokenizer, prepare_gpt2_data
from core.devices import select_device
from core.disk import Meanwhile
from core.distributed import ALONE, Ranks
from core.errors import CheckpointMismatch, GenerationError
from core.events import CheckpointSaved, Emit
from core.exactness import be_deterministic, departures, surroundings, versions, warning_of
from core.legacy import restore_legacy_optimizer
from core.manifest import Manifest, new_manifest
from core.models import LanguageModel
from core.models.gpt2 import GPT2Wrapper
from core.opening import base_folder
from core.parts import Parts, build_model, build_optimizer
from core.precision import Precision
from core.resume_rules import ResumeMode
from core.retention import superseded
from core.saving import BackgroundWriter
from core.sources import SourceText
from core.state import (
    CheckpointContent,
    RunState,
    capture,
    restore_optimizer,
    restore_rng,
    rng_states,
    seed_everything,
)
from core.tokenizer import CharacterTokenizer, Tokenizer
from core.trainer import ShouldStop, Trainer


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """Who a run is, as its checkpoints will say."""

    job_id: str | None = None
    attempt: int = 0
    fence: int = 0
    parent: str | None = None
    own: str = field(default_factory=lambda: f"run_{secrets.token_hex(8)}")

    @property
    def run(self) -> str:
        """What all checkpoints of this run say."""
        return self.job_id or self.own


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
    model, tokenizer, tokens = _model_and_data(config, source, resume, models_root, meanwhile)
    meanwhile()
    if resume:
        model.load_tensors(resume["model_state_dict"])
    model.to(device)
    meanwhile()
    optimizer = build_optimizer(config, model)
    if not ranks.leads:
        # All have built the same model from the same seed; dropout is to differ.
        seed_everything(config.seed + ranks.rank)
    goes_on = resume is not None and mode is not ResumeMode.WARM_START
    parts = Parts(
        config,
        model,
        optimizer,
        tokenizer,
        tokens,
        device,
        block_size=min(config.block_size, model.max_context),
        precision=Precision(config.precision, device),
        ranks=ranks,
        cautions=_cautions(resume, config, device, ranks) if resume and goes_on else (),
    )
    run = RunState.of(resume) if resume and goes_on else RunState()
    run.end_step = end_step or run.step + config.training_steps
    if resume and goes_on:
        _restore(resume, parts)
    meanwhile()
    saver = _RunSaver(store, source, identity or RunIdentity(), meanwhile) if store else None
    trainer = Trainer(parts, run, emit, should_stop, saver)
    if goes_on:
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
        restore_rng(resume["rng"][rank])


def _cautions(resume: CheckpointContent, config: TrainingConfig, device: str, ranks: Ranks) -> tuple[str, ...]:
    now = surroundings(device, ranks.world_size, config.deterministic)
    has_generators = bool(resume["rng"])
    return tuple(warning_of(departures(resume["versions"], resume["surroundings"], now, has_generators=has_generators)))


class _RunSaver:
    """Keeps the checkpoints of one run; of several ranks, the first one writes."""

    def __init__(self, store: CheckpointStore, source: SourceText, identity: RunIdentity, meanwhile: Meanwhile) -> None:
        self._store = store
        self._source = source
        self._identity = identity
        self._writer = BackgroundWriter(meanwhile)

    def begin(self, trainer: Trainer) -> None:
        """Copy the state, and begin to write it."""
        rng = trainer.parts.ranks.gather(rng_states())
        if not trainer.parts.ranks.leads:
            return
        parts = trainer.parts
        scale = parts.precision.state()
        captured = capture(parts.model, parts.optimizer, parts.tokenizer, trainer.run, rng=rng, scale=scale)
        manifest = self._manifest(trainer.parts, trainer.run)

        def publish(meanwhile: Meanwhile) -> CheckpointSaved:
            write = partial(captured.write, meanwhile=meanwhile)
            saved = save_checkpoint(self._store, manifest, write, meanwhile, size_bytes=captured.size_bytes).manifest
            self._retire(trainer.parts.config.keep_checkpoints)
            return CheckpointSaved(saved.step, saved.id, saved.name, saved.size_bytes, saved.train_loss, saved.val_loss)

        self._writer.begin(publish)

    def published(self, *, wait: bool = False) -> CheckpointSaved | None:
        """See `core.saving.Saver`."""
        return self._writer.finished(wait=wait)

    def _retire(self, keep: int) -> None:
        """A job's checkpoints are in a ledger, and retired by whoever writes there."""
        if self._identity.job_id is None:
            for item in superseded(self._store.of_run(self._identity.run), keep):
                self._store.retire(item.manifest.name)

    def _manifest(self, parts: Parts, run: RunState) -> Manifest:
        config, identity = config_to_dict(parts.config), self._identity
        # Only what was measured at this very step is this checkpoint's.
        last = run.last_evaluation if run.last_evaluation and run.last_evaluation["step"] == run.step else {}
        return new_manifest(
            model=parts.model.name,
            source=self._source.name,
            step=run.step,
            end_step=run.end_step,
            config=config,
            train_loss=last.get("train_loss"),
            val_loss=last.get("val_loss"),
            job_id=identity.job_id,
            attempt=identity.attempt,
            fence=identity.fence,
            parent=identity.parent,
            run=identity.run,
            hashes={"config": _hash_of(config), "source": self._source.sha256},
            versions=versions(),
            surroundings=surroundings(parts.device, parts.ranks.world_size, parts.config.deterministic),
        )


def _hash_of(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
