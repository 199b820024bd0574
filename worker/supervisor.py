"""One attempt at one job, from claim to conclusion: start the child, write what it says, renew the lease, obey.

Everything is written under the fence of the claim. A write that finds another fence means that somebody else may hold
the job: the child's whole process group is killed and nothing more is said.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from core.checkpointing import Checkpoint, CheckpointStore, first_whole
from core.errors import CheckpointNotFound, RatchetError
from jobs import feed, lease
from jobs.catalog import checkpoint_ids
from jobs.database import Database
from jobs.errors import LeaseLost, LedgerUnavailable
from jobs.lease import Failed, Stopped, Succeeded
from jobs.tables import Checkpoint as CheckpointRow
from jobs.tables import Job, State
from worker.assignment import assign
from worker.process import ChildProcess, Said
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

READ_SECONDS = 0.05
MAX_RETRY_DELAY = 60.0


@dataclass
class Supervisor:
    """Takes care of one attempt.

    Args:
        db: The ledger.
        job: As it was claimed; its fence speaks for this attempt.
        settings: Times and places.
        draining: Whether the worker is shutting down; asked often.
        housekeeping: What the worker wants done now and then, also while a job runs.
        child: Gives the process that is to train, waiting for its assignment.
    """

    db: Database
    job: Job
    settings: WorkerSettings
    draining: Callable[[], bool]
    housekeeping: Callable[[], None] = lambda: None
    child: Callable[[], ChildProcess] = ChildProcess
    _pending: list[Said] = field(default_factory=list)
    _ending: Said | None = None
    _renewed: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _stop_asked: bool = False
    _deadline: float | None = None

    def attend(self) -> None:
        """See the attempt through to its end, whatever that is."""
        try:
            child = self._start()
        except LeaseLost:
            return
        except LedgerUnavailable as error:
            log.warning("job %s could not be started and will be claimed again: %s", self.job.id, error.message)
            return
        except (RatchetError, OSError) as error:
            self._refuse(error)
            return
        try:
            while not child.ended and not self._succeeded():
                self._hear(child)
                self._renew_if_due()
                self._stop_if_asked(child)
                self.housekeeping()
            self._conclude(child)
        except LeaseLost:
            log.warning("job %s is no longer ours; its child is stopped", self.job.id)
        finally:
            child.kill()

    def _start(self) -> ChildProcess:
        """Start the child from where the job has come to.

        That is read off the disk: a worker may have died between publishing a checkpoint and saying so.
        """
        store = CheckpointStore(self.settings.checkpoints)
        store.sweep(self.job.id)
        mine = store.of_job(self.job.id)
        own, broken = first_whole(mine)
        with self.db.read() as session:
            known = checkpoint_ids(session, self.job.id)
            parent = session.get(CheckpointRow, self.job.parent_checkpoint) if self.job.parent_checkpoint else None
        if own is None and self.job.parent_checkpoint and parent is None:
            raise CheckpointNotFound(f"checkpoint '{self.job.parent_checkpoint}', which this job resumes, is gone")
        self._pending += [("checkpoint", _said_of(item)) for item in reversed(mine) if item.manifest.id not in known]
        self._pending += [("warning", {"message": f"{error.message}; it is passed over"}) for error in broken]
        parent_path = str(self.settings.checkpoints / parent.path) if parent else None
        assignment = assign(self.job, self.settings, own, parent_path)
        child = self.child()
        child.assign(assignment)
        log.info("job %s attempt %d runs as process %d", self.job.id, self.job.attempt, child.pid)
        return child

    def _refuse(self, error: RatchetError | OSError) -> None:
        """The job cannot even be started, and the worker goes on to the next one."""
        code = error.code if isinstance(error, RatchetError) else "storage_error"
        with suppress(LeaseLost, LedgerUnavailable), self.db.write() as session:
            lease.finish(session, self.job.id, self.job.fence, Failed(code, str(error)))
        log.warning("job %s could not be started: %s", self.job.id, error)

    def _hear(self, child: ChildProcess) -> None:
        """Read what the child says and write it to the ledger; what cannot be written now is kept for the next time."""
        for said in child.read(READ_SECONDS):
            if said[0] in ("outcome", "failure"):
                self._ending = said
            else:
                self._pending.append(said)
        if not self._pending:
            return
        try:
            with self.db.write() as session:
                feed.record(session, self.job.id, self.job.fence, self._pending)
            self._pending = []
        except LedgerUnavailable as error:
            self._tolerate(error)

    def _renew_if_due(self) -> None:
        if time.monotonic() - self._renewed < self.settings.heartbeat_seconds:
            return
        try:
            with self.db.write() as session:
                lease.beat(session, self.job.id, self.job.fence)
            self._renewed = time.monotonic()
        except LedgerUnavailable as error:
            self._tolerate(error)

    def _tolerate(self, error: LedgerUnavailable) -> None:
        """The ledger may be away for a while, but never for so long that another worker could take over."""
        log.warning("job %s: %s", self.job.id, error.message)
        if time.monotonic() - self._renewed > self.settings.self_fence_seconds:
            raise LeaseLost(self.job.id, self.job.fence) from error

    def _stop_if_asked(self, child: ChildProcess) -> None:
        """A person's stop waits for the step boundary, however long a step takes; a worker that leaves cannot."""
        if not self._stop_asked and (self.draining() or self._stop_requested()):
            self._stop_asked = True
            child.stop()
        if self.draining() and self._deadline is None:
            self._deadline = time.monotonic() + self.settings.drain_seconds
        if self._deadline is not None and time.monotonic() > self._deadline:
            said = f"the run did not come to a step boundary within {self.settings.drain_seconds:g} s and was ended"
            self._pending.append(("warning", {"message": f"{said}; it goes on from its last checkpoint"}))
            log.warning("job %s: %s", self.job.id, said)
            self._deadline = float("inf")
            child.kill()

    def _stop_requested(self) -> bool:
        """Whether a person asked; if so, say `stopping` in the ledger."""
        if time.monotonic() - self._looked < self.settings.stop_poll_seconds:
            return False
        self._looked = time.monotonic()
        try:
            with self.db.read() as session:
                job = session.get(Job, self.job.id)
                asked = job is not None and job.stop_requested is not None
            if not asked:
                return False
            with self.db.write() as session:
                return lease.acknowledge_stop(session, self.job.id, self.job.fence).state is State.STOPPING
        except LedgerUnavailable as error:
            self._tolerate(error)
            return False

    def _succeeded(self) -> bool:
        """Whether the run has said that it ended as it should; taking a Python process down may last a second more."""
        return self._ending is not None and self._ending[0] == "outcome"

    def _conclude(self, child: ChildProcess) -> None:
        """Write how it ended, trying for as long as the lease is ours."""
        while True:
            try:
                with self.db.write() as session:
                    if self._pending:
                        feed.record(session, self.job.id, self.job.fence, self._pending)
                    state = self._end(session, child)
                log.info("job %s ends this attempt as %s", self.job.id, state)
                return
            except LedgerUnavailable as error:
                self._tolerate(error)
                time.sleep(READ_SECONDS)

    def _end(self, session: Any, child: ChildProcess) -> State:
        kind, data = self._ending or ("", {})
        job_id, fence = self.job.id, self.job.fence
        if kind == "outcome":
            outcome = Succeeded() if data["outcome"] == "finished" else Stopped()
            return lease.finish(session, job_id, fence, outcome).state
        if self._stop_asked and not kind:
            return lease.release(session, job_id, fence).state
        failure = Failed(data["code"], data["message"]) if kind else _cause(child)
        _log_tail(self.job.id, child)
        if data.get("final"):
            return lease.finish(session, job_id, fence, failure).state
        delay = min(MAX_RETRY_DELAY, 2.0**self.job.failures_in_a_row)
        return lease.retry(session, job_id, fence, failure, delay, max_attempts=self.settings.max_attempts).state


def _log_tail(job_id: str, child: ChildProcess) -> None:
    """What the child's standard error last had, tracebacks among it, is for the operator and not for the job's log."""
    child.close()
    for line in child.tail:
        log.warning("job %s: | %s", job_id, line)


def _cause(child: ChildProcess) -> Failed:
    """Why a child that said nothing is gone."""
    code = child.exit_code or 0
    if code == -signal.SIGKILL:
        return Failed("killed", "The training process was killed, most likely because the machine ran out of memory.")
    if code < 0:
        return Failed("signal", f"The training process was ended by {signal.Signals(-code).name}.")
    return Failed("exited", f"The training process ended with exit code {code} and said nothing.")


def _said_of(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "step": manifest.step,
        "id": manifest.id,
        "name": manifest.name,
        "size_bytes": manifest.size_bytes,
        "train_loss": manifest.train_loss,
        "val_loss": manifest.val_loss,
    }
