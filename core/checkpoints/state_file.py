"""What `state.json` may say, and the history of evaluations beside it: found on a disk, believed only after a check.

The history is a file of its own, `history.safetensors`: a number takes 8 bytes there, whatever it is, and a run may
evaluate after each of ten million updates. A checkpoint of the first releases has it in its `state.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from core.checkpoints.manifest import Count, Manifest
from core.checkpoints.weights import load_tensors
from core.errors import CheckpointCorrupt
from core.machine.outside import read_plain

STATE_FILE = "state.json"
HISTORY_FILE = "history.safetensors"
MAX_STATE_BYTES = 64 << 20
"""Half a million evaluations of an early release, or the names of a hundred thousand parameters."""

MAX_EVALUATIONS = 10_000_000
"""The newest are kept."""

_COLUMNS = ("step", "train_loss", "val_loss")
BYTES_OF_EVALUATION = 8 * len(_COLUMNS)

Word = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Position = Annotated[int, Field(ge=0, le=624)]
"""In the Mersenne Twister's words. NumPy looks there without a check of its own."""
State = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$", max_length=1 << 16)]
"""Of one of torch's generators, as hexadecimal digits."""


class Evaluation(BaseModel):
    """Mean losses after `step` updates."""

    step: Count
    train_loss: float
    val_loss: float


class SavedRun(BaseModel):
    """See `core.state.RunState`."""

    step: Count
    end_step: Count = 0
    tokens_seen: Annotated[int, Field(ge=0, lt=2**63)] = 0
    initial_train_loss: float | None = None
    last_checkpoint_train_loss: float | None = None
    num_parts: Annotated[int, Field(ge=1, le=1 << 17)] = 1
    num_rising: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] | None = None
    evaluations: list[Evaluation] = []


class Group(BaseModel):
    """Of an optimizer's groups, what is looked at again."""

    names: list[str]


class Scale(BaseModel):
    """See `core.optimization.precision`."""

    scale: Positive
    growth_factor: Annotated[float, Field(gt=1, allow_inf_nan=False)]
    backoff_factor: Annotated[float, Field(gt=0, lt=1)]
    growth_interval: Annotated[int, Field(gt=0, lt=2**31)]
    growth_tracker: Annotated[int, Field(ge=0, lt=2**31, alias="_growth_tracker")]


class Generators(BaseModel):
    """Of one rank, see `core.state.rng_states`."""

    python: tuple[Literal[3], list[Word], float | None]
    numpy: tuple[Annotated[list[Word], Field(min_length=624, max_length=624)], Position, Literal[0, 1], float]
    torch: State
    cuda: State | Annotated[list[State], Field(max_length=1024)] | None = None
    mps: State | None = None


class SavedState(BaseModel):
    """All of it."""

    run: SavedRun
    optimizer: list[Group]
    scale: Scale | Annotated[dict[str, Any], Field(max_length=0)] = {}
    rng: Generators | None
    rng_of_others: list[Generators | None] = []


def read_state(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What `state.json` of a verified checkpoint says, with the evaluations in `run`, wherever they are kept.

    Raises:
        CheckpointCorrupt, CheckpointUnsafe, StorageError: said in one sentence.
    """
    try:
        plain = json.loads(read_plain(folder / STATE_FILE, MAX_STATE_BYTES))
        run = SavedState.model_validate(plain).run
    except ValidationError as error:
        raise _unreadable(manifest, first_complaint(error)) from None
    except (ValueError, RecursionError) as error:
        raise _unreadable(manifest, f"{STATE_FILE} is no JSON: {type(error).__name__}") from None
    if run.step != manifest.step:
        raise _unreadable(manifest, f"{STATE_FILE} is of step {run.step}, and the manifest of step {manifest.step}")
    said: dict[str, Any] = {**plain, "run": run.model_dump()}
    if HISTORY_FILE in manifest.files:
        said["run"]["evaluations"] = _evaluations(manifest, load_tensors(folder / HISTORY_FILE))
    return said


def history(evaluations: Sequence[dict[str, float]]) -> dict[str, Tensor]:
    """The evaluations as a tensor (number of evaluations, 3) of float64: step, train_loss, val_loss."""
    rows = [[evaluation[name] for name in _COLUMNS] for evaluation in evaluations[-MAX_EVALUATIONS:]]
    return {"evaluations": torch.from_numpy(np.array(rows, dtype=np.float64).reshape(-1, len(_COLUMNS)))}


def first_complaint(error: ValidationError) -> str:
    """Where a file does not say what it should, and why."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{STATE_FILE}: {'.'.join(str(part)[:50] for part in first['loc'])}: {first['msg']}"


def _evaluations(manifest: Manifest, tensors: dict[str, Tensor]) -> list[dict[str, float]]:
    rows = tensors.get("evaluations")
    if rows is None or rows.dtype != torch.float64 or rows.dim() != 2 or rows.shape[1] != len(_COLUMNS):
        raise _unreadable(manifest, f"{HISTORY_FILE} is no table of evaluations")
    if len(rows) > MAX_EVALUATIONS or not bool(((rows[:, 0] >= 0) & (rows[:, 0] <= manifest.step)).all()):
        raise _unreadable(manifest, f"{HISTORY_FILE} has evaluations that the run cannot have made")
    return [{"step": int(step), "train_loss": train, "val_loss": val} for step, train, val in rows.tolist()]


def _unreadable(manifest: Manifest, why: str) -> CheckpointCorrupt:
    return CheckpointCorrupt(f"checkpoint '{manifest.name}' cannot be read: {why}")
