"""A new run, from a request that can still be refused to a job that is never lost: checked first, then put in line."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass

from pydantic import BaseModel
from sqlmodel import Session

from core.config import TrainingConfig, config_to_dict, parse
from core.errors import RatchetError
from core.forecasts.forecast_warnings import warnings_of
from core.io_utils import get_data_source_name
from core.machine.failpoints import failpoint
from core.sources.corpus import columns_of
from core.sources.files import SourceFacts, SourceFolder, check_length
from core.sources.methods import method_of
from core.sources.rows import place_in
from jobs import queue
from jobs.database import Database
from jobs.queue import NewJob
from jobs.tables import Job
from service.errors import ModelForbidden, QueueFull
from service.schemas import JobIn
from service.settings import ServiceSettings

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repeat:
    """How a request that comes twice is known: by its key, and by being the same request."""

    key: str | None
    request_hash: str | None

    @classmethod
    def of(cls, key: str | None, path: str, body: BaseModel | None) -> Repeat:
        """Of a request that may have no key."""
        if key is None:
            return cls(None, None)
        said = body.model_dump(mode="json", exclude_unset=True) if body else {}
        canonical = json.dumps([path, said], sort_keys=True)
        return cls(key, hashlib.sha256(canonical.encode()).hexdigest())


@dataclass(frozen=True, slots=True)
class Accepted:
    """The job that answers a request: made by it, made by an earlier one like it, or simply going on."""

    job: Job
    created: bool = False
    replayed: bool = False


class Intake:
    """Takes jobs in for one owner.

    Args:
        settings: The operator's limits and places.
        ledger: Where jobs wait.
        owner: Whose they are.
    """

    def __init__(self, settings: ServiceSettings, ledger: Database, owner: str) -> None:
        self.settings = settings
        self.ledger = ledger
        self.owner = owner
        self.sources = SourceFolder(settings.sources)

    def submit(self, body: JobIn, repeat: Repeat) -> Accepted:
        """Put a fresh run in line.

        Raises:
            ConfigError, ModelForbidden, SourceError: the run could not work.
            IdempotencyConflict, QueueFull: it cannot be taken.
        """
        try:
            spec = self.fresh(body, repeat)
        except RatchetError:
            # A request that was answered once is answered again, even if it could not be made any more.
            earlier = self.answered(repeat)
            if earlier is None:
                raise
            return earlier
        return self.put_in_line(spec, repeat)

    def answered(self, repeat: Repeat) -> Accepted | None:
        """The answer to an earlier request like this one."""
        with self.ledger.read() as session:
            return self.answered_in(session, repeat)

    def answered_in(self, session: Session, repeat: Repeat) -> Accepted | None:
        """The same, in a transaction that goes on."""
        job = queue.made_before(session, self.owner, repeat.key, repeat.request_hash)
        return None if job is None else _replayed(job, repeat)

    def put_in_line(self, spec: NewJob, repeat: Repeat) -> Accepted:
        """Make a job of it, unless there are too many, or a request at the same time has made it."""
        with self.ledger.write() as session:
            enqueued = queue.enqueue(session, spec)
            if not enqueued.created:
                return _replayed(enqueued.job, repeat)
            if queue.num_queued(session) > self.settings.max_queued_jobs:
                raise QueueFull(f"{self.settings.max_queued_jobs} jobs wait in line, which is as many as may.")
            failpoint("intake.committing")
        failpoint("intake.committed")
        return Accepted(enqueued.job, created=True)

    def check_sources(self, config: TrainingConfig) -> list[SourceFacts]:
        """The facts of each source, if the run can learn from them.

        Raises:
            SourceError: one is missing, forbidden, not text, empty, too short for the block size, or of rows that the
                method knows nothing to do with.
            ConfigError: the model cannot learn by the method.
        """
        facts = [self.sources.inspect(share.source, columns_of(share)) for share in config.shares]
        names = [share.source for share in config.shares]
        method = method_of({name: found.kind for name, found in zip(names, facts, strict=True)}, config)
        for found in facts if method == "lm" else []:
            if not config.is_pretrained and config.tokenizer == "characters":
                check_length(found.num_characters, config.block_size, "characters")
            else:
                # Without the tokenizer this much is known: a token stands for at least one byte.
                check_length(found.size_bytes, config.block_size, "bytes")
        return facts

    def fresh(self, body: JobIn, repeat: Repeat) -> NewJob:
        """What a request asks for, after every check that needs no worker.

        Raises:
            ConfigError, ModelForbidden, SourceError: the run could not work.
        """
        given = body.given_config()
        if "base_model" in body.model_fields_set:
            check_model(given["base_model"], self.settings, "base_model")
        elif body.model_type == "gpt2":
            given["base_model"] = self.settings.base_model
        config = parse(TrainingConfig, given)
        facts = self.check_sources(config)
        return NewJob(
            name=body.name or f"{config.model_type} {get_data_source_name(config.source)}",
            owner=self.owner,
            config=config_to_dict(config),
            training_steps=config.training_steps,
            priority=body.priority,
            metadata=body.metadata,
            run_after=body.run_after.timestamp() if body.run_after else None,
            idempotency_key=repeat.key,
            request_hash=repeat.request_hash,
            warning=" ".join(map(_sentence, [*_left_out(config, facts), *warnings_of(config, facts)])) or None,
        )


def _left_out(config: TrainingConfig, facts: list[SourceFacts]) -> list[str]:
    """What the run will skip, said before it begins."""
    return [
        f"{found.num_bad_rows} of the {found.num_rows + found.num_bad_rows} rows of '{share.source}' will be skipped: "
        f"{'; '.join(f'{place_in(found.format)} {row.number} {row.reason}' for row in found.bad_rows[:3])}"
        for share, found in zip(config.shares, facts, strict=True)
        if found.num_bad_rows
    ]


def _sentence(said: str) -> str:
    return f"{said[0].upper()}{said[1:].rstrip('.')}."


def _replayed(job: Job, repeat: Repeat) -> Accepted:
    """What made the job is answered with 201 again, what let it go on with 200."""
    return Accepted(job, created=job.idempotency_key == repeat.key, replayed=True)


def check_model(name: str, settings: ServiceSettings, field: str) -> None:
    """A request may name what the hub or the models root has; any other folder is the operator's to name.

    Raises:
        ModelForbidden: it names something else.
    """
    if name != settings.base_model and (".." in name or not _HUB_NAME.fullmatch(name)):
        raise ModelForbidden(name, field)
