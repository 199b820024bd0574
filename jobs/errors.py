"""What the ledger refuses, and why.

core.errors.RatchetError
├── JobNotFound             job_not_found
├── JobBusy                 job_busy
├── CheckpointPinned        checkpoint_pinned
├── CheckpointNeeded        checkpoint_needed
├── IllegalTransition       illegal_transition
├── LeaseLost               lease_lost
├── IdempotencyConflict     idempotency_conflict
├── TextUnfit               text_unfit
├── LedgerUnavailable       ledger_unavailable
│   └── LedgerNewer         ledger_newer
├── CheckpointNotFound      checkpoint_not_found, of `core.errors`
│   └── CheckpointRemoved   checkpoint_removed
└── CheckpointCorrupt       checkpoint_corrupt, of `core.errors`
    └── RunUnreadable
"""

from __future__ import annotations

from core.errors import CheckpointCorrupt, CheckpointNotFound, RatchetError


class JobNotFound(RatchetError):
    """No job of that id that this owner may see."""

    code = "job_not_found"

    def __init__(self, job_id: str) -> None:
        super().__init__(f"There is no job {job_id!r}; GET /jobs lists those at hand.")


class JobBusy(RatchetError):
    """The job has to come to rest first."""

    code = "job_busy"


class CheckpointRemoved(CheckpointNotFound):
    """It was there, and has been removed."""

    code = "checkpoint_removed"


class RunUnreadable(CheckpointCorrupt):
    """A run has checkpoints, and none of them can be read: a person decides what becomes of it."""


class CheckpointPinned(RatchetError):
    """A person asked for it to stay."""

    code = "checkpoint_pinned"


class CheckpointNeeded(RatchetError):
    """A job that has not ended cannot do without it."""

    code = "checkpoint_needed"


class IllegalTransition(RatchetError):
    """The state machine has no such arrow; see `jobs.tables`."""

    code = "illegal_transition"

    def __init__(self, job_id: str, state: str, to: str) -> None:
        super().__init__(f"Job {job_id} is {state}; it cannot become {to} from there.")


class LeaseLost(RatchetError):
    """The caller no longer holds the job: nothing was written, and its child has to be stopped."""

    code = "lease_lost"

    def __init__(self, job_id: str, fence: int) -> None:
        super().__init__(f"The lease on job {job_id} with fence {fence} is lost; stop its run, another may hold it.")


class IdempotencyConflict(RatchetError):
    """The key was used before, for another request."""

    code = "idempotency_conflict"

    def __init__(self, key: str) -> None:
        super().__init__(
            f"The idempotency key {key!r} was used for a different request; choose a new key for this one."
        )


class TextUnfit(RatchetError):
    """A text has a character that the database does not take: NUL, or half of a surrogate pair."""

    code = "text_unfit"

    def __init__(self) -> None:
        super().__init__("A text in the request has a character that cannot be kept: NUL, or half of a surrogate pair.")


class LedgerUnavailable(RatchetError):
    """The database is locked, full, damaged or out of reach; a commit that was under way may have been done or not."""

    code = "ledger_unavailable"


class LedgerNewer(LedgerUnavailable):
    """The database was migrated by a later release than this one."""

    code = "ledger_newer"
