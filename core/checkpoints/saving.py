"""Saves beside the loop: the state is copied at a step boundary, and written while the next steps are made.

One at a time: a save that begins waits for the one before it. What the disk refuses is raised in the training thread,
at the next step boundary, so that no run goes on for long without what it believes to be saved.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from core.checkpointing import CheckpointStore, save_checkpoint
from core.checkpoints.exactness import surroundings, versions
from core.checkpoints.manifest import Manifest, hash_of_config, new_manifest
from core.checkpoints.retention import superseded
from core.config import config_to_dict
from core.events import CheckpointSaved, Event, Warned
from core.machine.disk import Meanwhile, nothing
from core.parts import Parts
from core.sources.corpus import Corpus
from core.state import RunState, capture, rng_states

LOOK_SECONDS = 0.2

Publish = Callable[[Meanwhile], list[Event]]
"""Writes and publishes one checkpoint, calling what it is given again and again; returns what there is to say."""


class BackgroundWriter:
    """Publishes in a thread of its own.

    Args:
        meanwhile: Called from the waiting thread as long as the writing one makes progress.
    """

    def __init__(self, meanwhile: Meanwhile = nothing) -> None:
        self._meanwhile = meanwhile
        self._thread: threading.Thread | None = None
        self._outcome: list[Event] | BaseException = []
        self._done = threading.Event()
        self._num_signs = 0

    def begin(self, publish: Publish) -> None:
        """Publish; nothing else may be under way."""
        assert self._thread is None, "one checkpoint at a time"
        self._done.clear()
        # Not a daemon: a process that ends in order has written what it began.
        self._thread = threading.Thread(target=self._write, args=(publish,), name="checkpoint-writer")
        self._thread.start()

    def finished(self, *, wait: bool = False) -> list[Event]:
        """What there is to say since the last call; with `wait`, once nothing is under way any more.

        Raises:
            DiskFull, StorageError: it could not be kept, and the earlier ones are whole.
        """
        if self._thread is None or not (wait or self._done.is_set()):
            return []
        self._wait()
        self._thread, outcome, self._outcome = None, self._outcome, []
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def _wait(self) -> None:
        # Not by joining the thread: interrupted by Ctrl-C, Python 3.11 then takes it for ended.
        seen = self._num_signs
        while not self._done.wait(LOOK_SECONDS):
            if self._num_signs != seen:
                seen = self._num_signs
                self._meanwhile()

    def _write(self, publish: Publish) -> None:
        try:
            self._outcome = publish(self._show_life)
        except BaseException as error:  # Raised again in the thread that asks.
            self._outcome = error
        finally:
            self._done.set()

    def _show_life(self) -> None:
        self._num_signs += 1


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


class RunSaver:
    """Keeps the checkpoints of one run; of several ranks, the first one writes."""

    def __init__(self, store: CheckpointStore, corpus: Corpus, identity: RunIdentity, meanwhile: Meanwhile) -> None:
        self._store = store
        self._corpus = corpus
        self._identity = identity
        self._writer = BackgroundWriter(meanwhile)

    def begin(self, parts: Parts, run: RunState) -> None:
        """Copy the state of this moment, and begin to write it; the one before it has been kept by then."""
        rng = parts.ranks.gather(rng_states(parts.device))
        if not parts.ranks.leads:
            return
        of_parts = (parts.model, parts.optimizer, parts.tokenizer)
        captured = capture(*of_parts, run, rng=rng, scale=parts.precision.state(), averages=parts.averages)
        manifest = self._manifest(parts, run)

        def publish(meanwhile: Meanwhile) -> list[Event]:
            write = partial(captured.write, meanwhile=meanwhile)
            made = save_checkpoint(self._store, manifest, write, meanwhile, size_bytes=captured.size_bytes).manifest
            saved = CheckpointSaved(made.step, made.id, made.name, made.size_bytes, made.train_loss, made.val_loss)
            return [saved, *self._retire(parts.config.keep_checkpoints)]

        self._writer.begin(publish)

    def published(self, *, wait: bool = False) -> list[Event]:
        """See `BackgroundWriter.finished`."""
        return self._writer.finished(wait=wait)

    def _retire(self, keep: int) -> list[Event]:
        """A job's checkpoints are in a ledger, and retired by whoever writes there. What stays is no reason to stop."""
        if self._identity.job_id is not None:
            return []
        warnings: list[Event] = []
        for item in superseded(self._store.of_run(self._identity.run), keep):
            try:
                self._store.retire(item.path.name)
            except OSError as error:
                said = f"checkpoint '{item.path.name}' is superseded and could not be removed: {error.strerror}"
                warnings.append(Warned(said))
        return warnings

    def _manifest(self, parts: Parts, run: RunState) -> Manifest:
        config, identity = config_to_dict(parts.config), self._identity
        # Only what was measured at this very step is this checkpoint's.
        last = run.last_evaluation if run.last_evaluation and run.last_evaluation["step"] == run.step else {}
        return new_manifest(
            model=parts.model.name,
            source=self._corpus.name,
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
            hashes={"config": hash_of_config(config), "source": self._corpus.sha256, **parts.hashes},
            versions=versions(),
            surroundings=surroundings(parts.device, parts.ranks.world_size, parts.config.deterministic),
        )
