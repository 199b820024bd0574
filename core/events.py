"""What a run says while it trains: typed events, and the one seam they leave through.

`Emit` is called with each event in order, from the training thread. A console prints them, a worker's child sends them
down a pipe, a test collects them. `state` and `done` are said by the ledger, not by a run, and so live there.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Event:
    """Base of all events; `kind` is the name that streams and the ledger use."""

    kind: ClassVar[str]

    def data(self) -> dict[str, Any]:
        """The event's fields as plain values, without the kind."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Log(Event):
    """A line for a person at a terminal."""

    kind: ClassVar[str] = "log"
    line: str


@dataclass(frozen=True, slots=True)
class Started(Event):
    """The model is built and the first step is about to run. Steps are counted in optimizer updates."""

    kind: ClassVar[str] = "started"
    start_step: int
    end_step: int
    num_parameters: int
    num_trainable: int
    device: str
    train_tokens: int
    val_tokens: int


@dataclass(frozen=True, slots=True)
class Step(Event):
    """One optimizer update. `loss` in nats per token, `grad_norm` before clipping, `memory_bytes` of the process
    (of the GPU on CUDA), `mfu` the part of the device's arithmetic that the model needed, see
    `core.monitoring.utilization`."""

    kind: ClassVar[str] = "step"
    step: int
    loss: float
    lr: float
    grad_norm: float
    tokens_per_second: float
    memory_bytes: int
    mfu: float | None


@dataclass(frozen=True, slots=True)
class Eval(Event):
    """Mean loss over `eval_iters` batches of each part, in nats per token (per pair, of preferences).

    `val_accuracy` is the part of the tokens that were the likeliest ones, or of the pairs that were told apart;
    `val_perplexity` is e to the validation loss, of tokens alone.
    """

    kind: ClassVar[str] = "eval"
    step: int
    train_loss: float
    val_loss: float
    val_accuracy: float | None = None
    val_perplexity: float | None = None


@dataclass(frozen=True, slots=True)
class CheckpointSaved(Event):
    """A checkpoint is published: complete, synced and under its final name."""

    kind: ClassVar[str] = "checkpoint"
    step: int
    id: str
    name: str
    size_bytes: int
    train_loss: float | None
    val_loss: float | None


@dataclass(frozen=True, slots=True)
class Sample(Event):
    """Text that the model wrote; `text` has the new tokens alone."""

    kind: ClassVar[str] = "sample"
    step: int
    prompt: str
    text: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something the user should know that does not stop the run."""

    kind: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The run goes on from a checkpoint; charts cut what an earlier attempt drew beyond `from_step`."""

    kind: ClassVar[str] = "resumed"
    attempt: int
    from_step: int
    checkpoint: str | None


Emit = Callable[[Event], None]
"""Takes each event of a run, in order."""


def finite(value: Any) -> Any:
    """The same plain value with NaN and infinities replaced by None, which JSON can carry."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def to_json(data: dict[str, Any]) -> str:
    """One line of ASCII JSON: safe for any line splitter (U+2028 is escaped), NaN as null."""
    return json.dumps(finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))


def line_of(kind: str, data: Mapping[str, Any]) -> str | None:
    """What a person at a terminal sees of an event: its line, or None if it is not said in words."""
    if kind == "log":
        return str(data.get("line", ""))
    if kind == "warning":
        return f"⚠️ {data.get('message', '')}"
    error = data.get("error")
    if kind == "state" and isinstance(error, Mapping):
        return f"❌ {error.get('message') or error.get('code', '')}"
    return None


def printable(text: str) -> str:
    """Without control characters but tabs and line ends: a model's text or a job's name may not steer a terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
