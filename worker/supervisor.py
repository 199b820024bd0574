"""One attempt at one job, from claim to conclusion: start the child, write what it says, renew the lease, obey.

Everything is written under the fence of the claim. A write that finds another fence means that somebody else may hold
the job: the child's whole process group is killed and nothing more is said.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from sqlmodel import Session

from core.checkpointing import CheckpointStore
from core.errors import RatchetError, StorageError
from core.machine.failpoints import failpoint
from jobs import lease
from jobs.database import Database
from jobs.errors import LeaseLost, LedgerUnavailable, RunUnreadable
from jobs.lease import Failed, Halted, Stopped, Succeeded
from jobs.queue import MAX_RETRY_SECONDS
from jobs.removal import discard
from jobs.tables import Job
from worker.assignment import assign
from worker.causes import OutOfMemoryKills, cause_of
from worker.child import Said
from worker.guard import Guard
from worker.origin import find_origin, say_what_was_published
from worker.process import ChildProcess
from worker.removal import remove_set_aside
from worker.settings import WorkerSettings
from worker.stacks import readable
from worker.tenure import Tenure

log = logging.getLogger(__name__)

READ_SECONDS = 0.05
STACKS_SECONDS = 3.0
ENDINGS = ("outcome", "halt", "failure")


@dataclass
class Supervisor:
    """Takes care of one attempt.

    Args:
        db: The ledger.
        job: As it was claimed; its fence speaks for this attempt.
        settings: Times and places.
        draining: Whether the worker is shutting down; asked often.
        child: Gives the process that is to train, waiting for its assignment.
        visible_devices: The GPUs that it may see; None leaves that as it is.
    """

    db: Database
    job: Job
    settings: WorkerSettings
    draining: Callable[[], bool]
    child: Callable[[], ChildProcess] = ChildProcess
    visible_devices: str | None = None
    never_began: bool = field(default=False, init=False)
    """The ledger was away before anything was done; whoever claimed the job is to give it back."""
    _tenure: Tenure = field(init=False)
    _store: CheckpointStore = field(init=False)
    _memory: OutOfMemoryKills = field(init=False)
    _ending: Said | None = None
    _stop_asked: bool = False
    _is_hung: bool = False
    _deadline: float | None = None

    def __post_init__(self) -> None:
        self._tenure = Tenure(self.db, self.job, self.settings)
        self._store = CheckpointStore(self.settings.checkpoints)
        self._memory = OutOfMemoryKills()

    def attend(self) -> None:
        """See the attempt through to its end, whatever that is."""
        try:
            child = self._start()
        except LeaseLost:
            return
        except LedgerUnavailable as error:
            log.warning("job %s could not be started and will be given back: %s", self.job.id, error.message)
            self.never_began = True
            return
        except (RatchetError, OSError) as error:
            self._refuse(error)
            return
        try:
            # Reading checkpoints and starting a process may have taken long, and the guard counts from the last beat.
            self._tenure.renew_if_due()
            with Guard(self._tenure, child, self.settings.self_fence_seconds):
                while not child.ended and not self._is_over:
                    self._hear(child)
                    self._tenure.renew_if_due()
                    self._stop_if_asked(child)
                    self._end_if_hung(child)
            if not self._succeeded:
                _log_tail(self.job.id, child)
                self._say_what_was_published()
            state = self._tenure.conclude(lambda session: self._end(session, child))
            self._discard_superseded()
            log.info("job %s ends this attempt as %s", self.job.id, state)
        except LeaseLost:
            log.warning("job %s is no longer ours; its child is stopped", self.job.id)
        finally:
            child.kill()

    def _start(self) -> ChildProcess:
        """Start the child from where the job has come to."""
        origin = find_origin(self.db, self._store, self._tenure)
        self.job = self._tenure.job
        child = self.child()
        child.assign(assign(self.job, self.settings, origin.own, origin.parent, self.visible_devices))
        failpoint("worker.assigned")
        log.info("job %s attempt %d runs as process %d", self.job.id, self.job.attempt, child.pid)
        return child

    def _refuse(self, error: RatchetError | OSError) -> None:
        """The job cannot even be started, and the worker goes on to the next one; a fault of the machine may pass."""
        log.warning("job %s could not be started: %s", self.job.id, error)
        with suppress(LeaseLost):
            self._tenure.conclude(lambda session: self._end_unbegun(session, error))
            self._discard_superseded()

    def _end_unbegun(self, session: Session, error: RatchetError | OSError) -> Job:
        job_id, fence = self.job.id, self.job.fence
        match error:
            case RunUnreadable():
                return lease.finish(session, job_id, fence, Halted(error.code, error.message))
            case StorageError():
                return self._retry(session, Failed(error.code, error.message))
            case RatchetError():
                return lease.finish(session, job_id, fence, Failed(error.code, error.message))
        # A path of this machine is not the job's to tell.
        said = f"The run could not be started: {error.strerror or type(error).__name__}."
        return self._retry(session, Failed("storage_error" if error.filename else "start_failed", said))

    def _hear(self, child: ChildProcess) -> None:
        """Read what the child says and write it to the ledger."""
        for said in child.read(READ_SECONDS):
            if said[0] in ENDINGS:
                self._ending = said
            else:
                self._tenure.say(*said)
        self._tenure.record()
        self._discard_superseded()

    def _discard_superseded(self) -> None:
        """Remove the folders of what newer checkpoints have superseded, now that the ledger says so."""
        names, self._tenure.superseded = self._tenure.superseded, []
        if names:
            discard(self.db, self._store, names)
            remove_set_aside(self._store)

    def _say_what_was_published(self) -> None:
        """A checkpoint that the run did not come to say counts all the same."""
        try:
            say_what_was_published(self.db, self._store, self._tenure)
        except (LedgerUnavailable, OSError) as error:
            log.warning("job %s: its next attempt will find what this one published: %s", self.job.id, error)

    def _stop_if_asked(self, child: ChildProcess) -> None:
        """A person's stop waits for the step boundary, however long a step takes; a worker that leaves cannot."""
        if not self._stop_asked and (self.draining() or self._tenure.stop_requested()):
            self._stop_asked = True
            child.stop()
        if self.draining() and self._deadline is None:
            self._deadline = time.monotonic() + self.settings.drain_seconds
        if self._deadline is not None and time.monotonic() > self._deadline:
            said = f"the run did not come to a step boundary within {self.settings.drain_seconds:g} s and was ended"
            self._tenure.say("warning", {"message": f"{said}; it goes on from its last checkpoint"})
            log.warning("job %s: %s", self.job.id, said)
            self._deadline = float("inf")
            child.kill()

    def _end_if_hung(self, child: ChildProcess) -> None:
        """A child that has said nothing for long is asked where it stands, and ended."""
        if child.silent_seconds < self.settings.hang_seconds or child.exit_code is not None:
            return
        said = f"the run made no progress for {self.settings.hang_seconds:g} s, was taken for hung and ended"
        log.warning("job %s: %s", self.job.id, said)
        # The lease has to outlast the wait.
        lines = list(readable(child.stacks(min(STACKS_SECONDS, self.settings.self_fence_seconds / 2))))
        for line in ["🧵 Where the hung process stood:", *(lines or ["  it did not answer"])]:
            self._tenure.say("log", {"line": line})
        self._tenure.say("warning", {"message": f"{said}; the log says where it stood"})
        self._ending = self._ending or ("failure", {"code": "hung", "message": f"{said[0].upper()}{said[1:]}."})
        self._is_hung = True
        child.kill()

    @property
    def _succeeded(self) -> bool:
        """Whether the run has said that it ended as it should; taking a Python process down may last a second more."""
        return self._ending is not None and self._ending[0] == "outcome"

    @property
    def _is_over(self) -> bool:
        """Whether nothing that the child may still say counts; one that hangs in a driver may outlive its killing."""
        return self._succeeded or self._is_hung

    def _end(self, session: Session, child: ChildProcess) -> Job:
        kind, data = self._ending or ("", {})
        job_id, fence = self.job.id, self.job.fence
        if kind == "outcome":
            return lease.finish(session, job_id, fence, Succeeded() if data["outcome"] == "finished" else Stopped())
        if kind == "halt":
            return lease.finish(session, job_id, fence, Halted(data["code"], data["message"]))
        if self._stop_asked and not kind:
            return lease.release(session, job_id, fence)
        cause = cause_of(child.exit_code or 0, self._memory.any())
        failure = Failed(data["code"], data["message"]) if kind else cause
        if data.get("final"):
            return lease.finish(session, job_id, fence, failure)
        return self._retry(session, failure)

    def _retry(self, session: Session, failure: Failed) -> Job:
        return lease.retry(
            session,
            self.job.id,
            self.job.fence,
            failure,
            min(MAX_RETRY_SECONDS, self.settings.retry_seconds * 2.0 ** min(10, self.job.failures_in_a_row)),
            max_attempts=self.settings.max_attempts,
            max_failures_in_a_row=self.settings.max_failures_in_a_row,
        )


def _log_tail(job_id: str, child: ChildProcess) -> None:
    """What the child's standard error last had, tracebacks among it, is for the operator and not for the job's log."""
    child.kill()
    child.close()
    for line in child.tail:
        log.warning("job %s: | %s", job_id, line)
