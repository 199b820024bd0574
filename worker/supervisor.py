"""One attempt at one job, from claim to conclusion: start the child, write what it says, renew the lease, obey.

Everything is written under the fence of the claim. A write that finds another fence means that somebody else may hold
the job: the child's whole process group is killed and nothing more is said.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.checkpointing import Checkpoint
from jobs import feed, lease
from jobs.catalog import latest_checkpoint
from jobs.database import Database
from jobs.errors import LeaseLost, LedgerUnavailable
from jobs.lease import Failed, Stopped, Succeeded
from jobs.tables import Checkpoint as CheckpointRow
from jobs.tables import Job, State
from worker.assignment import Assignment, assign
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
    """

    db: Database
    job: Job
    settings: WorkerSettings
    draining: Callable[[], bool]
    housekeeping: Callable[[], None] = lambda: None
    _pending: list[Said] = field(default_factory=list)
    _ending: Said | None = None
    _renewed: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _stopping_since: float | None = None

    def attend(self) -> None:
        """See the attempt through to its end, whatever that is."""
        try:
            child = ChildProcess(self._assignment())
        except LeaseLost:
            return
        log.info("job %s attempt %d runs as process %d", self.job.id, self.job.attempt, child.pid)
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

    def _assignment(self) -> Assignment:
        """What the child is told; a checkpoint that was published but never registered is registered first."""
        with self.db.read() as session:
            parent = session.get(CheckpointRow, self.job.parent_checkpoint) if self.job.parent_checkpoint else None
            known = latest_checkpoint(session, self.job.id)
        parent_path = str(self.settings.checkpoints / parent.path) if parent else None
        assignment, own = assign(self.job, self.settings, parent_path)
        if own and (known is None or known.step < own.manifest.step):
            self._pending.append(("checkpoint", _said_of(own)))
        return assignment

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
        if self._stopping_since is not None:
            if time.monotonic() - self._stopping_since > self.settings.drain_seconds:
                log.warning("job %s did not save in time; it goes on from its last checkpoint", self.job.id)
                child.kill()
            return
        if self.draining() or self._stop_requested():
            self._stopping_since = time.monotonic()
            child.stop()

    def _stop_requested(self) -> bool:
        """Whether a person asked; if so, say `stopping` in the ledger."""
        if time.monotonic() - self._looked < self.settings.stop_poll_seconds:
            return False
        self._looked = time.monotonic()
        try:
            with self.db.read() as session:
                job = session.get(Job, self.job.id)
                asked = job is not None and job.stop_requested is not None
            if asked:
                with self.db.write() as session:
                    lease.acknowledge_stop(session, self.job.id, self.job.fence)
        except LedgerUnavailable as error:
            self._tolerate(error)
            return False
        return asked

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
        if self._stopping_since is not None and not kind:
            return lease.release(session, job_id, fence).state
        failure = Failed(data["code"], data["message"]) if kind else _cause(child)
        self._tell_tail(session, child)
        if data.get("final"):
            return lease.finish(session, job_id, fence, failure).state
        delay = min(MAX_RETRY_DELAY, 2.0**self.job.failures_in_a_row)
        return lease.retry(session, job_id, fence, failure, delay, max_attempts=self.settings.max_attempts).state

    def _tell_tail(self, session: Any, child: ChildProcess) -> None:
        """What the child's standard error last had goes into the job's log, where the user can see it."""
        child.close()
        if child.tail:
            lines: list[Said] = [("log", {"line": line}) for line in child.tail]
            feed.record(session, self.job.id, self.job.fence, lines)


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
