"""A run that goes on: from a checkpoint, from a finished job's latest one, or simply a paused job itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import PurePath
from typing import Any

from core.bases.fingerprints import check_base, of_small_files
from core.checkpoints.data_place import moved
from core.checkpoints.manifest import Manifest
from core.checkpoints.resume_rules import ResumeMode
from core.config import MOST_STEPS, TrainingConfig, config_to_dict, parse, resume_config
from core.errors import CheckpointCorrupt, Difference, SourceError
from core.io_utils import get_data_source_name
from core.sources.corpus import sha256_of_all
from core.sources.files import SourceFacts
from core.sources.methods import method_of
from jobs import catalog, queue
from jobs.errors import IllegalTransition, JobBusy
from jobs.queue import NewJob
from jobs.tables import FINAL, HELD, Checkpoint, Job, State, Stop
from jobs.turns import LINE, take_turn
from service.errors import NothingSaved, SourceChanged
from service.intake import Accepted, Intake, Repeat
from service.schemas import ResumeIn
from service.shelf import BEST, LATEST, Shelf

_ELSEWHERE = "POST /jobs/{checkpoint}/resume starts another run from what it saved"


class Resumption:
    """Lets runs go on.

    Args:
        intake: Checks and takes in what becomes a new job.
        shelf: Has the checkpoints.
    """

    def __init__(self, intake: Intake, shelf: Shelf) -> None:
        self._intake = intake
        self._shelf = shelf

    def resume(self, ref: str, body: ResumeIn, repeat: Repeat) -> Accepted:
        """Go on from a checkpoint (id, name, `latest`, `<job>:best`) or a job.

        Raises:
            JobNotFound, CheckpointNotFound: there is no such thing.
            IdempotencyConflict: the key was used for another request.
            CheckpointRemoved: it is gone.
            JobBusy, NothingSaved, CheckpointCorrupt: it cannot go on from there.
            CheckpointMismatch: what the request changes, or what became of the source, does not fit.
            ConfigError, SourceError: the run could not work.
        """
        earlier = self._intake.answered(repeat)
        if earlier is not None:
            return earlier
        owner, ref = self._intake.owner, ref.removesuffix(".pt")
        if ref == LATEST:
            return self._go_on_from_first_whole(self._shelf.newest(owner), body, repeat)
        if ref.endswith(BEST):
            return self._go_on_from_first_whole(self._shelf.best_first(owner, ref), body, repeat)
        if not ref.startswith("job_"):
            return self._go_on_from(self._shelf.find(owner, ref), body, repeat)
        with self._intake.ledger.read() as session:
            job = catalog.get_job(session, owner, ref)
            left = catalog.checkpoints_of(session, job.id)
        if job.state not in FINAL:
            return self._unpause(job, body, repeat)
        if not left:
            raise NothingSaved(f"Job {job.id} left no checkpoint to go on from; submit a fresh run.")
        return self._go_on_from_first_whole(left, body, repeat)

    def _unpause(self, job: Job, body: ResumeIn, repeat: Repeat) -> Accepted:
        has_place = job.state is State.PAUSED and self._check_own(job)
        with self._intake.ledger.write() as session:
            # Its key may be new to the owner's jobs only once, as with a fresh run.
            take_turn(session, LINE)
            job = queue.locked(session, job)
            earlier = self._intake.answered_in(session, repeat)
            if earlier is not None:
                return earlier
            key = {} if repeat.key is None else {"resume_key": repeat.key, "resume_hash": repeat.request_hash}
            try:
                return Accepted(queue.unpause(session, job, **key, **_changes(job, body, has_place)))
            except IllegalTransition as error:
                raise JobBusy(f"Job {job.id} is {job.state} and needs no resume; {_ELSEWHERE}.") from error

    def _go_on_from_first_whole(self, rows: Sequence[Checkpoint], body: ResumeIn, repeat: Repeat) -> Accepted:
        """From the first if it looks whole; else from a later one, and the new job's log says why."""
        row = self._shelf.first_whole(rows)
        flaw = self._shelf.flaw_of(rows[0]) if row is not rows[0] else None
        warning = f"{flaw}; this run goes on from {row.id} (step {row.step}) instead" if flaw else None
        return self._go_on_from(row, body, repeat, warning)

    def _go_on_from(self, row: Checkpoint, body: ResumeIn, repeat: Repeat, warning: str | None = None) -> Accepted:
        manifest = self._shelf.sound_manifest(row)
        # Refuses, among other things, a source whose name is too long to be looked for in all its parts.
        before = parse(TrainingConfig, {"source": "", **manifest.config})
        saved = {**config_to_dict(before), **self._names_below_root(before)}
        if "method" not in manifest.config:
            # What it does not say tells its release, see `core.checkpoints.before_rows`.
            del saved["method"]
        state = {
            "config": saved,
            "step": manifest.step,
            "end_step": manifest.end_step,
            "source_sha256": manifest.hashes.get("source"),
        }
        config, differences = resume_config(state, body.overrides(), body.mode)
        facts = self._check_source(config, manifest, body.mode)
        self._check_base(config, manifest)
        if body.mode is not ResumeMode.WARM_START and _has_place(config, facts):
            differences += _moved(saved, config, manifest.step)
        spec = self._spec(row, manifest, config, differences, body, repeat)
        return self._intake.put_in_line(replace(spec, warning=warning), repeat)

    def _check_source(self, config: TrainingConfig, manifest: Manifest, mode: ResumeMode) -> list[SourceFacts]:
        """Optimizer and data position go on in the same text alone; a warm start may read any."""
        try:
            facts = self._intake.check_sources(config)
        except SourceError as error:
            if mode is ResumeMode.WARM_START:
                raise
            raise SourceChanged(f"checkpoint '{manifest.name}' cannot go on: {error.message}", field="source") from None
        now = sha256_of_all([found.sha256 for found in facts])
        before = manifest.hashes.get("source", now)
        if mode is not ResumeMode.WARM_START and now != before:
            raise SourceChanged(
                f"source '{config.source}' is no longer the text that checkpoint '{manifest.name}' was trained on: "
                f"its SHA-256 was {before} and is {now}; restore it, or resume with mode 'warm_start'",
                field="source",
                differences=[Difference("source_sha256", before, now)],
            )
        return facts

    def _check_base(self, config: TrainingConfig, manifest: Manifest) -> None:
        """What a worker would refuse later, as far as it can be told without reading weights: adapters know their base.

        A base in the hub's cache is the worker's to look at.
        """
        folder = self._intake.settings.models / config.base_model
        if not (config.is_pretrained and config.use_lora and folder.is_dir()):
            return
        check_base(config.base_model, manifest.name, manifest.hashes, of_small_files(folder))

    def _check_own(self, job: Job) -> bool:
        """Before a paused job goes on: the text and the base are what its own newest checkpoint says, if it has one.

        Returns:
            See `_has_place`.
        """
        config = parse(TrainingConfig, job.config)
        with self._intake.ledger.read() as session:
            row = catalog.latest_checkpoint(session, job.id)
        try:
            manifest = self._shelf.manifest(row) if row else None
        except CheckpointCorrupt:
            manifest = None  # Its worker will take the one before.
        if manifest is None:
            return _has_place(config, self._intake.check_sources(config))
        facts = self._check_source(config, manifest, ResumeMode.EXTEND)
        self._check_base(config, manifest)
        return _has_place(config, facts)

    def _names_below_root(self, config: TrainingConfig) -> dict[str, Any]:
        """A console run's checkpoint names its sources by paths; what lies below the root has a shorter name.

        The hash that the checkpoint keeps tells whether those are the same texts.
        """
        if not config.sources:
            return {"source": self._name_below_root(config.source)}
        found: dict[str, str] = {}
        for path in (share.source for share in config.sources):
            name = self._name_below_root(path)
            # Two paths may end alike, and then the second one is none of what is here.
            found[path] = path if name in found.values() else name
        shares = [share.model_copy(update={"source": found[share.source]}) for share in config.sources]
        return {"source": shares[0].source, "sources": [share.model_dump(mode="json") for share in shares]}

    def _name_below_root(self, source: str) -> str:
        parts = PurePath(source).parts
        for start in range(len(parts)):
            name = "/".join(parts[start:])
            try:
                self._intake.sources.open(name).close()
            except SourceError:
                continue
            return name
        return source

    def _spec(
        self,
        row: Checkpoint,
        manifest: Manifest,
        config: TrainingConfig,
        differences: list[Difference],
        body: ResumeIn,
        repeat: Repeat,
    ) -> NewJob:
        told: dict[str, Any] = config_to_dict(config)
        name = f"{config.model_type} {get_data_source_name(config.source)} from step {manifest.step}"
        return NewJob(
            name=body.name or name,
            owner=self._intake.owner,
            config=told,
            training_steps=config.training_steps,
            start_step=0 if body.mode is ResumeMode.WARM_START else manifest.step,
            priority=body.priority,
            metadata=body.metadata,
            run_after=body.run_after.timestamp() if body.run_after else None,
            parent_job=row.job_id,
            parent_checkpoint=row.id,
            resume_mode=body.mode.value,
            diff=[asdict(item) for item in differences],
            idempotency_key=repeat.key,
            request_hash=repeat.request_hash,
        )


def _has_place(config: TrainingConfig, facts: Sequence[SourceFacts]) -> bool:
    """Whether it learns the rows of one source in their order, see `core.checkpoints.data_place`."""
    kinds = {share.source: found.kind for share, found in zip(config.shares, facts, strict=True)}
    return len(kinds) == 1 and method_of(kinds, config) != "lm"


def _moved(before: Mapping[str, Any], config: TrainingConfig, step: int) -> list[Difference]:
    found = moved(before, config_to_dict(config), step)
    return [found] if found else []


def _changes(job: Job, body: ResumeIn, has_place: bool) -> dict[str, Any]:
    """What the columns of a paused job become; its steps to make are counted from where it is.

    Args:
        has_place: See `_has_place`.

    Raises:
        JobBusy: it cannot be changed like this, or not yet.
        ConfigError, CheckpointMismatch: the run could not go on like this.
    """
    if job.state is not State.PAUSED:
        if job.state in HELD and job.stop_requested is Stop.PAUSE and body.model_fields_set:
            raise JobBusy(f"Job {job.id} is still {job.state}; wait until it is paused, then send its changes again.")
        return {}
    if body.mode is ResumeMode.WARM_START:
        raise JobBusy(f"Job {job.id} is paused and goes on with its optimizer; {_ELSEWHERE}, also a warm start.")
    columns = body.model_dump(include={"name", "priority", "metadata"}, exclude_unset=True, exclude_none=True)
    if "metadata" in columns:
        columns["meta"] = columns.pop("metadata")
    if body.run_after is not None:
        columns["run_after"] = body.run_after.timestamp()
    overrides = body.overrides()
    made = job.step - job.start_step
    steps = made + overrides["training_steps"] if "training_steps" in overrides else job.training_steps
    if "num_epochs" in overrides and "training_steps" not in overrides:
        steps = MOST_STEPS
    elif "training_steps" not in overrides and job.config.get("num_epochs") is not None:
        overrides = {**overrides, "num_epochs": job.config["num_epochs"]}
    # A job of an earlier release keeps all checkpoints, and no change of something else takes that from it.
    # How many steps its epochs are, it has told since.
    known = {"keep_checkpoints": 0, **job.config, "training_steps": job.training_steps}
    if job.step == 0:
        # Nothing of it was learnt in the way of an earlier release.
        known.setdefault("method", "auto")
    # Counted from where it began, as its steps are.
    saved = {"config": known, "step": job.start_step, "end_step": job.start_step + job.training_steps}
    config, differences = resume_config(saved, {**overrides, "training_steps": steps}, body.mode)
    differences += _moved(known, config, job.step) if has_place else []
    # Also when nothing changes: what changed the last time is not what changes now.
    columns["diff"] = [asdict(item) for item in differences]
    if differences:
        columns |= {
            "config": config_to_dict(config),
            "training_steps": steps,
            # Until it has a checkpoint of its own, its worker goes by this.
            "resume_mode": body.mode.value if job.resume_mode == ResumeMode.EXACT else job.resume_mode,
        }
    return columns
