"""The process that trains: one attempt, told on standard input, speaking only events on a pipe.

Each line on the pipe is `{"kind": …, "data": {…}}`. The last is `outcome` (the run ended as it should), `failure`, or
`halt` (it cannot go on until a person has done something); a
child that ends without either was killed or crashed, and its exit status says how. A `pulse` says only that it lives.
"""

from __future__ import annotations

import faulthandler
import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.checkpointing import CheckpointStore, load_checkpoint
from core.config import TrainingConfig, parse
from core.errors import DiskFull, RatchetError, StorageError
from core.events import Event, Resumed, to_json
from core.failpoints import failpoint
from core.processes import exit_with_parent
from core.resume_rules import ResumeMode
from core.sources import SourceFolder
from worker.assignment import Assignment
from worker.stop import StopSign

PIPE_VARIABLE = "RATCHET_EVENT_PIPE"
PARENT_VARIABLE = "RATCHET_SUPERVISOR"
PULSE = "pulse"
PULSE_SECONDS = 1.0

Said = tuple[str, dict[str, Any]]


class Pipe:
    """The way out for everything the run says."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", encoding="ascii", buffering=1)
        self._spoke = -float("inf")

    def emit(self, event: Event) -> None:
        """Send one of the run's events."""
        self.send(event.kind, event.data())

    def send(self, kind: str, data: dict[str, Any]) -> None:
        """Send one line."""
        self._spoke = time.monotonic()
        self._file.write(f'{{"kind":"{kind}","data":{to_json(data)}}}\n')

    def pulse(self) -> None:
        """Show that the run makes progress, if it has said nothing else for a second."""
        if time.monotonic() - self._spoke >= PULSE_SECONDS:
            self.send(PULSE, {})


def main() -> int:
    """Train what standard input says.

    Returns:
        The exit status: 0 if the pipe has the whole story, 1 otherwise.
    """
    exit_with_parent(signal.SIGKILL, parent=int(os.environ[PARENT_VARIABLE]))
    stop = StopSign()
    signal.signal(signal.SIGTERM, stop.set)
    # Ctrl-C in a terminal reaches every process there; only the worker decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A supervisor that takes it for hung asks where it stands; the answer goes to standard error, from any state.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    pipe = Pipe(int(os.environ.pop(PIPE_VARIABLE)))
    warm_up(pipe.pulse)
    line = sys.stdin.readline()
    if not line:
        return 0
    pipe.send(*attempt(Assignment.from_line(line), pipe, stop))
    return 0


def attempt(assignment: Assignment, pipe: Pipe, stop: StopSign) -> Said:
    """Train, and put into words how it ended."""
    try:
        outcome = train(assignment, pipe, stop)
        failpoint("child.finished")
    except DiskFull as error:
        return "halt", {"code": error.code, "message": error.message}
    except RatchetError as error:
        # A disk may be at fault for a moment; what else a user can cause stays as it is.
        return "failure", {"code": error.code, "message": error.message, "final": not isinstance(error, StorageError)}
    except Exception as error:  # The edge of the process: the worker's log gets the traceback, the job a sentence.
        traceback.print_exc()
        return "failure", _unexpected(error)
    return "outcome", {"outcome": outcome}


def warm_up(pulse: Callable[[], None]) -> None:
    """Import what a run needs, without touching a GPU; what only some need, only while no assignment is waiting."""
    import torch

    pulse()
    import core.assembly  # noqa: F401  # for its imports alone

    # Torch loads its compiler with its first optimizer, which takes as long as torch itself.
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    pulse()
    if not select.select([sys.stdin], [], [], 0)[0]:
        from transformers import GPT2LMHeadModel  # noqa: F401  # for its imports alone


def train(assignment: Assignment, pipe: Pipe, stop: StopSign) -> str:
    """Run the assignment's training; returns how it ended, `finished` or `stopped`."""
    from core.assembly import RunIdentity, assemble

    def should_stop() -> bool:
        pipe.pulse()
        return stop.is_set()

    if assignment.visible_devices is not None:
        # CUDA reads this when it is initialised, which imports do not do; torch, too, reads it anew until then.
        os.environ["CUDA_VISIBLE_DEVICES"] = assignment.visible_devices
    failpoint("child.begun")
    resume = load_checkpoint(assignment.resume, meanwhile=pipe.pulse) if assignment.resume else None
    config = parse(TrainingConfig, assignment.config)
    pipe.pulse()
    source = SourceFolder(Path(assignment.sources)).read(config.source)
    pipe.pulse()
    trainer = assemble(
        config,
        source,
        pipe.emit,
        should_stop,
        store=CheckpointStore(Path(assignment.checkpoints)),
        identity=RunIdentity(assignment.job_id, assignment.attempt, assignment.fence, assignment.parent),
        resume=resume,
        mode=ResumeMode(assignment.mode),
        end_step=assignment.end_step,
        models_root=Path(assignment.models),
        meanwhile=pipe.pulse,
    )
    if resume or assignment.has_begun:
        pipe.emit(Resumed(assignment.attempt, trainer.run.step, resume["name"] if resume else None))
    return trainer.train()


def _unexpected(error: Exception) -> dict[str, Any]:
    from core.devices import as_out_of_memory

    short = as_out_of_memory(error)
    if short:
        return {"code": short.code, "message": short.message, "final": True}
    message = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return {"code": "crashed", "message": message, "final": False}


def parse_line(line: str) -> Said:
    """(kind, data) of a line that a child sent."""
    said = json.loads(line)
    return said["kind"], said["data"]


if __name__ == "__main__":
    sys.exit(main())
