"""What the service itself refuses.

core.errors.RatchetError
├── ModelForbidden          model_forbidden
├── LimitExceeded           limit_exceeded
├── BodyTooLarge            body_too_large
├── QueueFull               queue_full
├── TooManyStreams          too_many_streams
├── TooManyAtOnce           too_many_at_once
├── PositionInvalid         position_invalid
├── FilterUnfit             filter_unfit
├── NothingSaved            nothing_saved
├── WorkerUnavailable       worker_unavailable
├── GenerationFailed        generation_failed
├── GenerationRefused       (the worker's own code)
└── CheckpointMismatch
    └── SourceChanged       source_changed
"""

from __future__ import annotations

from core.errors import CheckpointMismatch, RatchetError


class ModelForbidden(RatchetError):
    """A base model that a request may not name."""

    code = "model_forbidden"

    def __init__(self, name: str, field: str) -> None:
        super().__init__(
            f"{field} {name!r} is neither a hub name nor this service's own base model: "
            "put the folder under the models root and name it",
            field=field,
        )


class LimitExceeded(RatchetError):
    """More than the operator allows in one request."""

    code = "limit_exceeded"


class BodyTooLarge(RatchetError):
    """The body of the request is larger than the operator allows."""

    code = "body_too_large"


class QueueFull(RatchetError):
    """As many jobs wait in line as the operator allows."""

    code = "queue_full"


class TooManyStreams(RatchetError):
    """As many streams are open as the operator allows."""

    code = "too_many_streams"


class TooManyAtOnce(RatchetError):
    """As many requests of a kind that takes long are being answered as may be."""

    code = "too_many_at_once"


class PositionInvalid(RatchetError):
    """No event of the job can have this number."""

    code = "position_invalid"


class FilterUnfit(RatchetError):
    """Filters and an order that do not go together."""

    code = "filter_unfit"


class NothingSaved(RatchetError):
    """The job ended without a checkpoint, so nothing can go on from it."""

    code = "nothing_saved"


class SourceChanged(CheckpointMismatch):
    """The text is no longer the one that the checkpoint was trained on."""

    code = "source_changed"


class WorkerUnavailable(RatchetError):
    """No worker that generates text can be reached."""

    code = "worker_unavailable"


class GenerationFailed(RatchetError):
    """A worker broke off, or failed, while it generated text."""

    code = "generation_failed"


class GenerationRefused(RatchetError):
    """A worker refused the request; `status` and `code` are its own."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code  # type: ignore[misc]  # one error for all codes of the other side
