"""What the holder of a job writes to the ledger: each event once, beats, and how it ended; all under one fence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlmodel import Session

from core.machine.failpoints import failpoint
from jobs import feed, lease, shelf
from jobs.database import Database
from jobs.errors import LeaseLost, LedgerUnavailable
from jobs.tables import Job, State
from worker.settings import WorkerSettings

log = logging.getLogger(__name__)

AGAIN_SECONDS = 0.05

Answer = TypeVar("Answer")


@dataclass
class Tenure:
    """A job in the hands of this worker, from the claim until it is lost or concluded.

    A commit whose answer was lost may have been done or not. The holder alone adds to a job's log, so the number of the
    last event tells: if it has moved, everything that was in that transaction has landed, and is not written again.

    Args:
        db: The ledger.
        job: As it was claimed.
        settings: Times.
    """

    db: Database
    job: Job
    settings: WorkerSettings
    pending: list[feed.Said] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    """Ids of the job's checkpoints that were damaged when this attempt began."""
    missing: set[str] = field(default_factory=set)
    """Ids of those that were not there then, or could not be read."""
    superseded: list[str] = field(default_factory=list)
    """Names of checkpoints that the ledger has marked as gone, and whose folders are to follow."""
    _position: int = field(init=False)
    _num_in_doubt: int | None = None
    renewed_at: float = field(default_factory=time.monotonic)
    _looked: float = -float("inf")
    _given_up: bool = False

    def __post_init__(self) -> None:
        self._position = self.job.last_seq

    @property
    def has_another(self) -> bool:
        """Whether an attempt that fails without a new checkpoint is followed by another one; see `jobs.lease.retry`."""
        job, settings = self.job, self.settings
        return job.attempt < settings.max_attempts and job.failures_in_a_row + 1 < settings.max_failures_in_a_row

    def give_up(self) -> None:
        """Write nothing more: the run is ended because nobody knows any more whether it is ours."""
        self._given_up = True

    def say(self, kind: str, data: dict[str, Any]) -> None:
        """Something for the log, written with the next `record`."""
        self.pending.append((kind, data))

    def record(self) -> None:
        """Write what is pending; what cannot be written now is kept for the next time."""
        if not self.pending:
            return
        failpoint("supervisor.recording")
        try:
            self._land(lambda _: None)
        except LedgerUnavailable as error:
            self._tolerate(error)
        else:
            failpoint("supervisor.recorded")

    def renew_if_due(self) -> None:
        """Keep the lease."""
        if time.monotonic() - self.renewed_at < self.settings.heartbeat_seconds:
            return
        # Others count from when they see the beat, which may be long before its answer comes.
        moment = time.monotonic()
        try:
            self._land(lambda session: lease.beat(session, self.job.id, self.job.fence))
            self.renewed_at = moment
        except LedgerUnavailable as error:
            self._tolerate(error)

    def amend(self, deed: Callable[[Session], Job]) -> None:
        """Write what is pending, and change the job, in one transaction.

        Raises:
            LeaseLost, LedgerUnavailable: it was not done, or nobody knows.
        """
        self.job = self._land(deed)

    def stop_requested(self) -> bool:
        """Whether a person asked for a stop, which the ledger then calls `stopping`; looked up now and then."""
        if time.monotonic() - self._looked < self.settings.stop_poll_seconds:
            return False
        self._looked = time.monotonic()
        try:
            with self.db.read() as session:
                job = session.get(Job, self.job.id)
            if job is None or job.stop_requested is None or job.fence != self.job.fence:
                return False
            if job.state is State.STOPPING:  # Said before, with an answer that never came.
                return True
            answer = self._land(lambda session: lease.acknowledge_stop(session, self.job.id, self.job.fence))
            return answer.state is State.STOPPING
        except LedgerUnavailable as error:
            self._tolerate(error)
            return False

    def conclude(self, end: Callable[[Session], Job]) -> State:
        """Write what is pending and how it ended, trying for as long as the lease is ours.

        Raises:
            LeaseLost: somebody else holds the job by now, or may.
        """
        failpoint("supervisor.concluding")
        while True:
            try:
                state = self._end_or_see_it_ended(end)
            except LedgerUnavailable as error:
                self._tolerate(error)
                time.sleep(AGAIN_SECONDS)
            else:
                failpoint("supervisor.concluded")
                return state

    def _end_or_see_it_ended(self, end: Callable[[Session], Job]) -> State:
        """Once the end has landed the job is ours no more, which is no loss if nobody has claimed it since."""
        is_in_doubt = self._num_in_doubt is not None
        try:
            return self._land(end).state
        except LeaseLost:
            if not is_in_doubt or self._given_up:
                raise
            with self.db.read() as session:
                job = session.get(Job, self.job.id)
            if job is None or job.fence != self.job.fence:
                raise
            return job.state

    def _land(self, deed: Callable[[Session], Answer]) -> Answer:
        """Write what is pending, and do the deed, in one transaction."""
        with self.db.write() as session:
            if self._given_up:
                raise LeaseLost(self.job.id, self.job.fence)
            self._settle_doubt(session)
            self._num_in_doubt = len(self.pending)
            position, superseded = self._position, []
            if self.pending:
                position = feed.record(session, self.job.id, self.job.fence, self.pending)
                superseded = self._retire(session)
            answer = deed(session)
        self.superseded += superseded
        self._position = answer.last_seq if isinstance(answer, Job) else position
        self._num_in_doubt = None
        self.pending.clear()
        return answer

    def _retire(self, session: Session) -> list[str]:
        """What was said last supersedes what came before it, if there is a checkpoint among it; see `jobs.shelf`."""
        if not any(kind == "checkpoint" for kind, _ in self.pending):
            return []
        # A job of an earlier release was taken in with the word that nothing would remove its checkpoints.
        keep = self.job.config.get("keep_checkpoints", 0)
        return shelf.retire_superseded(session, self.job.id, self.job.fence, keep, self.lost, self.missing)

    def _settle_doubt(self, session: Session) -> None:
        """Drop what the last transaction wrote, if it landed although its answer did not come."""
        if self._num_in_doubt is None:
            return
        position = feed.position(session, self.job.id, self.job.fence)
        if position != self._position:
            del self.pending[: self._num_in_doubt]
            self._position = position
        self._num_in_doubt = None

    def _tolerate(self, error: LedgerUnavailable) -> None:
        """The ledger may be away for a while, but never for so long that another worker could take over."""
        log.warning("job %s: %s", self.job.id, error.message)
        if time.monotonic() - self.renewed_at > self.settings.self_fence_seconds:
            raise LeaseLost(self.job.id, self.job.fence) from error
