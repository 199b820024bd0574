"""What the worker that holds a job says to the ledger, and how a holder that fell silent is found out.

Every verb here takes the fence that `claim` handed out and raises LeaseLost, with nothing written, if it is not the
job's any more: another worker may hold the job by then, or a scan has taken it back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from sqlmodel import Session, col, select, update

from jobs.errors import LeaseLost
from jobs.tables import FINAL, HELD, Job, State, Stop
from jobs.transitions import held, transition

MAX_ATTEMPTS = 5
MAX_FAILURES_IN_A_ROW = 2


@dataclass(frozen=True, slots=True)
class BeatAnswer:
    """What the ledger tells a holder: whether, and how, to stop its run."""

    stop_requested: Stop | None


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The run made all its steps."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The run cannot go on; `code` is stable, `message` says why in a sentence."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The run stopped at a step boundary because it was asked to."""


@dataclass(frozen=True, slots=True)
class Halted:
    """The run cannot go on until a person has done something; it waits for that, with all it has."""

    code: str
    message: str


Outcome = Succeeded | Failed | Stopped | Halted

WORKER_LOST = Failed("worker_lost", "The worker fell silent while it held this job.")


def beat(session: Session, job_id: str, fence: int) -> BeatAnswer:
    """Renew the lease.

    Raises:
        LeaseLost: see the module.
    """
    statement = (
        update(Job)
        .where(col(Job.id) == job_id, col(Job.fence) == fence, col(Job.state).in_(HELD))
        .values(heartbeat=col(Job.heartbeat) + 1)
        .returning(col(Job.stop_requested))
    )
    row = session.exec(statement, execution_options={"synchronize_session": False}).one_or_none()
    if row is None:
        raise LeaseLost(job_id, fence)
    return BeatAnswer(row[0])


def acknowledge_stop(session: Session, job_id: str, fence: int) -> Job:
    """Say that the run is being stopped; from here it ends cancelled, paused or, if it was done by then, succeeded.

    A request that was taken back in the meantime leaves the job as it was: look at the state that comes back.

    Raises:
        LeaseLost: see the module.
        IllegalTransition: it is stopping already.
    """
    job = held(session, job_id, fence)
    return job if job.stop_requested is None else transition(session, job_id, State.STOPPING, fence=fence)


def finish(session: Session, job_id: str, fence: int, outcome: Outcome) -> Job:
    """Say how the run ended.

    A stopped run becomes cancelled or paused, as was asked; without such a request it was drained, see `release`. A
    run that succeeded before it could be stopped has succeeded. One that halted is paused, with the reason. Said again
    by the same holder, of a job that is final, it changes nothing: a worker whose commit got no answer may repeat it.

    Raises:
        LeaseLost: see the module.
    """
    job = session.get(Job, job_id, populate_existing=True)
    if job is not None and job.fence == fence and job.state in FINAL:
        return job
    job = held(session, job_id, fence)
    match outcome:
        case Succeeded():
            if job.state is State.STARTING:  # A run that had no step left to make never said that it started.
                transition(session, job_id, State.RUNNING, fence=fence)
            return transition(session, job_id, State.SUCCEEDED, fence=fence)
        case Failed() if job.state is not State.STOPPING:
            return transition(session, job_id, State.FAILED, fence=fence, error=asdict(outcome))
        case Failed() | Halted():
            return _stop(session, job, outcome)
        case Stopped():
            return release(session, job_id, fence)


def release(session: Session, job_id: str, fence: int) -> Job:
    """Give a job back to the front of its place in line without charging the attempt, as a draining worker does.

    A job that was to be stopped is stopped instead.

    Raises:
        LeaseLost: see the module.
    """
    job = held(session, job_id, fence)
    if job.stop_requested is not None or job.state is State.STOPPING:
        return _stop(session, job)
    uncharged = max(0, job.attempt - 1)
    return transition(session, job_id, State.QUEUED, fence=fence, worker_id=None, attempt=uncharged)


def retry(
    session: Session,
    job_id: str,
    fence: int,
    error: Failed,
    delay: float,
    *,
    made_progress: bool | None = None,
    max_attempts: int = MAX_ATTEMPTS,
    max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
    now: float | None = None,
) -> Job:
    """Let a failed attempt be followed by another one, unless there were too many.

    The job fails for good with its last attempt, or when too many in a row made no checkpoint. One that was to be
    stopped is stopped instead.

    Args:
        delay: Seconds until the job may be put back in line, see `wake_due`.
        made_progress: Whether this attempt made a checkpoint; left out, the ledger's own record decides.

    Raises:
        LeaseLost: see the module.
    """
    job = held(session, job_id, fence)
    if job.stop_requested is not None or job.state is State.STOPPING:
        return _stop(session, job, error)
    now = time.time() if now is None else now
    if made_progress is None:
        made_progress = job.checkpoint != job.claimed_checkpoint
    failures = 0 if made_progress else job.failures_in_a_row + 1
    columns: dict[str, Any] = {"failures_in_a_row": failures, "error": asdict(error)}
    if job.attempt >= max_attempts or failures >= max_failures_in_a_row:
        return transition(session, job_id, State.FAILED, fence=fence, now=now, **columns)
    columns |= {"run_after": now + delay, "worker_id": None}
    return transition(session, job_id, State.RETRY_WAIT, fence=fence, now=now, **columns)


class LeaseScanner:
    """Finds jobs whose holder has fallen silent for a whole lease, by this process's own monotonic clock.

    It compares no time of another machine: a lease is over when the same (fence, heartbeat) was seen for all of it. So
    a new scanner waits for one lease before it takes anything back.
    """

    def __init__(
        self,
        lease_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        max_attempts: int = MAX_ATTEMPTS,
        max_failures_in_a_row: int = MAX_FAILURES_IN_A_ROW,
    ) -> None:
        self._lease_seconds = lease_seconds
        self._clock = clock
        self._max_attempts = max_attempts
        self._max_failures_in_a_row = max_failures_in_a_row
        self._first_seen: dict[str, tuple[int, int, float]] = {}

    def scan(self, session: Session) -> list[Job]:
        """Take silent jobs back: each one waits for its retry, or ends as it was asked to. Those come back.

        Needs a write transaction. One that is rolled back costs nothing: the next scan finds the same jobs.
        """
        # A ledger may take its time to answer. What it says was seen when it came, and silence is counted to when it
        # was asked for: the other way round a scanner that was cut off for a while would find everybody silent.
        asked = self._clock()
        rows = session.exec(select(Job.id, Job.fence, Job.heartbeat).where(col(Job.state).in_(HELD))).all()
        seen = self._clock()
        self._first_seen = {job_id: self._sighting(job_id, fence, heartbeat, seen) for job_id, fence, heartbeat in rows}
        silent = [
            (job_id, fence, heartbeat)
            for job_id, (fence, heartbeat, since) in self._first_seen.items()
            if asked - since >= self._lease_seconds
        ]
        return [job for sighting in silent if (job := self._take_back(session, *sighting)) is not None]

    def _take_back(self, session: Session, job_id: str, fence: int, heartbeat: int) -> Job | None:
        """Unless it has just been renewed after all, or somebody is at its row: then the next scan will see."""
        unchanged = (col(Job.id) == job_id, col(Job.fence) == fence, col(Job.heartbeat) == heartbeat)
        is_silent = select(Job.id).where(*unchanged, col(Job.state).in_(HELD)).with_for_update(skip_locked=True)
        if session.exec(is_silent).first() is None:
            return None
        return retry(
            session,
            job_id,
            fence,
            WORKER_LOST,
            delay=0,
            max_attempts=self._max_attempts,
            max_failures_in_a_row=self._max_failures_in_a_row,
        )

    def _sighting(self, job_id: str, fence: int, heartbeat: int, now: float) -> tuple[int, int, float]:
        seen = self._first_seen.get(job_id)
        return seen if seen is not None and seen[:2] == (fence, heartbeat) else (fence, heartbeat, now)


def _stop(session: Session, job: Job, error: Failed | Halted | None = None) -> Job:
    """Bring a job to rest as it was asked to; only an attempt that failed is charged."""
    if job.state is not State.STOPPING:
        transition(session, job.id, State.STOPPING, fence=job.fence)
    cause: dict[str, Any] = {} if error is None else {"error": asdict(error)}
    if job.stop_requested is Stop.CANCEL:
        return transition(session, job.id, State.CANCELLED, fence=job.fence, **cause)
    attempt = job.attempt if isinstance(error, Failed) else max(0, job.attempt - 1)
    return transition(session, job.id, State.PAUSED, fence=job.fence, worker_id=None, attempt=attempt, **cause)
