"""One tree of errors: everything a user can cause, each with a stable code and what to do next.

    RatchetError
    ├── ConfigError                 config_invalid
    ├── SourceError
    │   ├── SourceNotFound          source_not_found
    │   ├── SourceForbidden         source_forbidden
    │   ├── SourceEmpty             source_empty
    │   ├── SourceNotText           source_not_text
    │   ├── SourceNotReadable       source_not_readable
    │   ├── SourceColumns           source_columns
    │   ├── SourceNoRows            source_no_rows
    │   ├── SourceAltered           source_altered
    │   ├── SourceTooShort          source_too_short
    │   ├── SourceTooLarge          source_too_large
    │   ├── SourceQuota             source_quota
    │   ├── SourceExists            source_exists
    │   └── SourceInUse             source_in_use
    ├── ModelUnavailable            model_unavailable
    ├── DeviceUnavailable           device_unavailable
    ├── DeviceBusy                  device_busy
    ├── CheckpointError
    │   ├── CheckpointPathMissing   checkpoint_path_missing
    │   ├── CheckpointNotFound      checkpoint_not_found
    │   ├── CheckpointCorrupt       checkpoint_corrupt
    │   ├── CheckpointUnsafe        checkpoint_unsafe
    │   └── CheckpointMismatch      checkpoint_mismatch
    ├── ExportError
    │   ├── ExportUnsupported       export_unsupported
    │   └── ModelExists             model_exists
    ├── StorageError                storage_error
    │   └── DiskFull                disk_full
    ├── RankLost                    rank_lost
    ├── NonFiniteLoss               non_finite
    ├── StopAsked                   stopped
    ├── OutOfMemory                 out_of_memory
    └── GenerationError             generation_invalid

A mistake of ours is an assert, never one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class RatchetError(Exception):
    """A failure that a user can cause, said in one sentence.

    Args:
        message: What is wrong, in words the user can act on.
        field: The setting it concerns, if one does.
    """

    code: ClassVar[str] = "ratchet_error"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class ConfigError(RatchetError):
    """One or several settings cannot be used; `problems` has (field, sentence) for each."""

    code = "config_invalid"

    def __init__(self, problems: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{name}: {said}" if name else said for name, said in problems))
        self.problems = problems


class SourceError(RatchetError):
    """A training text cannot be used."""

    def __init__(self, message: str) -> None:
        super().__init__(message, field="source")


class SourceNotFound(SourceError):
    """No such text under the sources root."""

    code = "source_not_found"


class SourceForbidden(SourceError):
    """The name leads out of the sources root, or to something that is not a regular file."""

    code = "source_forbidden"


class SourceEmpty(SourceError):
    """The text has nothing but white space in it."""

    code = "source_empty"


class SourceNotText(SourceError):
    """The file is not UTF-8; the message has the byte offset."""

    code = "source_not_text"


class SourceNotReadable(SourceError):
    """The file is compressed, damaged, or not of the format that its name says.

    Args:
        may_pass: Whether it may be the machine's trouble and not the file's, so that another look is worth it.
    """

    code = "source_not_readable"

    def __init__(self, message: str, *, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class SourceColumns(SourceError):
    """The columns that were named, or those that there are, are not those of any kind of row."""

    code = "source_columns"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.field = "columns"


class SourceNoRows(SourceError):
    """Not one row can be used; `bad_rows` has (number, reason) for the first of them."""

    code = "source_no_rows"

    def __init__(self, message: str, bad_rows: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(message)
        self.bad_rows = bad_rows


class SourceAltered(SourceError):
    """The file changed while it was read."""

    code = "source_altered"


class SourceTooShort(SourceError):
    """Fewer tokens than one block and the token that follows it; the message has both numbers."""

    code = "source_too_short"


class SourceTooLarge(SourceError):
    """More bytes than one file may have; the message has the limit."""

    code = "source_too_large"


class SourceQuota(SourceError):
    """All texts together would be more than the operator allows."""

    code = "source_quota"


class SourceExists(SourceError):
    """A text of that name is there, and was not to be replaced."""

    code = "source_exists"


class SourceInUse(SourceError):
    """A job that has not ended names the text, and could not go on without it."""

    code = "source_in_use"


class ModelUnavailable(RatchetError):
    """The base model's weights are neither in a folder nor in the cache nor to be fetched."""

    code = "model_unavailable"


class DeviceUnavailable(RatchetError):
    """The device asked for is not on this machine."""

    code = "device_unavailable"


class CheckpointError(RatchetError):
    """A checkpoint cannot be used."""


class CheckpointPathMissing(CheckpointError):
    """Resume was asked for without saying from where."""

    code = "checkpoint_path_missing"


class CheckpointNotFound(CheckpointError):
    """No checkpoint of that id, name or path."""

    code = "checkpoint_not_found"


class CheckpointCorrupt(CheckpointError):
    """A file of the checkpoint is missing, cut short or altered."""

    code = "checkpoint_corrupt"


class CheckpointUnsafe(CheckpointError):
    """The file holds more than tensors and plain values, so it is not opened."""

    code = "checkpoint_unsafe"


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that differs between a checkpoint and the run that goes on from it."""

    field: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.field}: {self.before} → {self.after}"


class CheckpointMismatch(CheckpointError):
    """The checkpoint belongs to another model shape, tokenizer or kind of run.

    If settings differ, `differences` has each that does and `forbidden` those of them that may not.
    """

    code = "checkpoint_mismatch"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        differences: Sequence[Difference] = (),
        forbidden: Sequence[Difference] = (),
    ) -> None:
        super().__init__(message, field=field)
        self.differences = differences
        self.forbidden = forbidden


class ExportError(RatchetError):
    """A checkpoint cannot become a model's folder."""


class ExportUnsupported(ExportError):
    """There is no such form of this kind of model, or no such name for it."""

    code = "export_unsupported"


class ModelExists(ExportError):
    """Something of that name is below the models root already."""

    code = "model_exists"


class StorageError(RatchetError):
    """The disk refused what was to be saved, or did not give what was to be read; what was saved before stays."""

    code = "storage_error"


class DiskFull(StorageError):
    """No space, or no quota, is left for what was to be saved."""

    code = "disk_full"


class RankLost(RatchetError):
    """One of the processes that train together is gone; the others can do nothing without it."""

    code = "rank_lost"


class NonFiniteLoss(RatchetError):
    """The loss became NaN or infinite; the last good checkpoint stays."""

    code = "non_finite"


class StopAsked(RatchetError):
    """A stop was asked for before the first step, where there is nothing to keep."""

    code = "stopped"


class DeviceBusy(RatchetError):
    """Each GPU is somebody's now, and nothing can be tried on one beside them."""

    code = "device_busy"


class OutOfMemory(RatchetError):
    """The GPU or the machine has no memory left for this run."""

    code = "out_of_memory"


class GenerationError(RatchetError):
    """A prompt or sampling setting cannot be used with this model."""

    code = "generation_invalid"
