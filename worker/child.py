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
from typing import TYPE_CHECKING, Any

from core.checkpointing import CheckpointStore, load_checkpoint
from core.checkpoints.before_rows import check_still_text
from core.checkpoints.resume_rules import ResumeMode
from core.config import TrainingConfig, parse
from core.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointNotFound,
    DiskFull,
    RankLost,
    RatchetError,
    StopAsked,
    StorageError,
)
from core.events import Emit, Event, Resumed, to_json
from core.imports import import_torch, import_transformers, import_what_it_takes
from core.machine.allocation import keep_freed_memory
from core.machine.disk import nothing
from core.machine.failpoints import failpoint
from core.machine.processes import exit_with_parent
from core.monitoring.trackers import tracked
from core.sources.corpus import Corpus
from core.sources.files import SourceFolder
from worker.assignment import Assignment
from worker.stop import StopSign

if TYPE_CHECKING:
    from core.distributed import Ranks
    from core.state import CheckpointContent

PIPE_VARIABLE = "RATCHET_EVENT_PIPE"
PARENT_VARIABLE = "RATCHET_SUPERVISOR"
PULSE = "pulse"
PULSE_SECONDS = 1.0

Said = tuple[str, dict[str, Any]]


class Unopened(RatchetError):
    """The checkpoint to begin from was whole a moment ago, or there is an earlier one: the next attempt will see."""

    def __init__(self, reason: CheckpointError, message: str) -> None:
        super().__init__(message)
        self.reason = reason


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
    keep_freed_memory()
    stop = StopSign()
    signal.signal(signal.SIGTERM, stop.set)
    # Ctrl-C in a terminal reaches every process there; only the worker decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if PIPE_VARIABLE not in os.environ:
        return follow()
    # A supervisor that takes it for hung asks where it stands; the answer goes to standard error, from any state.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    pipe = Pipe(int(os.environ.pop(PIPE_VARIABLE)))
    warm_up(pipe.pulse)
    line = sys.stdin.readline()
    if not line:
        return 0
    pipe.send(*attempt(Assignment.from_line(line), pipe, stop))
    return 0


def follow() -> int:
    """Train as another rank leads: it says what there is to say, and decides when to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import_torch()
    try:
        train(Assignment.from_line(sys.stdin.readline()), None, lambda: False)
    except RatchetError:
        return 1  # The leader has it, too, and says so.
    return 0


def attempt(assignment: Assignment, pipe: Pipe, stop: StopSign) -> Said:
    """Train, and put into words how it ended."""
    try:
        outcome = train(assignment, pipe, stop.is_set)
        failpoint("child.finished")
    except StopAsked:
        return "outcome", {"outcome": "stopped"}
    except DiskFull as error:
        return "halt", {"code": error.code, "message": error.message}
    except Unopened as error:
        return "failure", {"code": error.reason.code, "message": error.message, "final": False}
    except RatchetError as error:
        # A disk may be at fault for a moment, and a rank can be had again; what else a user can cause stays as it is.
        may_pass = isinstance(error, StorageError | RankLost)
        return "failure", {"code": error.code, "message": error.message, "final": not may_pass}
    except Exception as error:  # The edge of the process: the worker's log gets the traceback, the job a sentence.
        traceback.print_exc()
        return "failure", _unexpected(error)
    return "outcome", {"outcome": outcome}


def warm_up(pulse: Callable[[], None]) -> None:
    """Import what a run needs, without touching a GPU; what only some need, only while no assignment is waiting."""
    import_torch(pulse)
    pulse()
    if not select.select([sys.stdin], [], [], 0)[0]:
        import_transformers()


def train(assignment: Assignment, pipe: Pipe | None, is_stopped: Callable[[], bool]) -> str:
    """Run the assignment's training; returns how it ended, `finished` or `stopped`.

    Args:
        pipe: Takes what the run says; a rank that follows has none.
    """
    from core.distributed import together

    if assignment.visible_devices is not None:
        # CUDA reads this when it is initialised, which imports do not do; torch, too, reads it anew until then.
        os.environ["CUDA_VISIBLE_DEVICES"] = assignment.visible_devices
    pulse = pipe.pulse if pipe else nothing
    failpoint("child.begun")
    # All ranks have read it before the first one may retire it.
    resume = _opened(Path(assignment.resume), pulse) if assignment.resume else None
    config = parse(TrainingConfig, assignment.config)
    if resume and assignment.mode != ResumeMode.WARM_START:
        # A job of an earlier release may be on its second attempt.
        check_still_text(resume["config"], [share.source for share in config.shares])
    pulse()
    corpus = Corpus.of(config.shares, SourceFolder(Path(assignment.sources)).file)
    pulse()
    another = [sys.executable, "-m", "worker.child"]
    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
    line = assignment.to_line()
    with together(config.num_processes, config.device, another, environment, said=line) as ranks:
        if pipe is None:
            return _run(assignment, config, corpus, resume, ranks, None, lambda _: None, is_stopped)
        with tracked(pipe.emit, config, run_name=assignment.job_id, folder=Path(assignment.tracking)) as emit:
            return _run(assignment, config, corpus, resume, ranks, pipe, emit, is_stopped)


def _opened(path: Path, pulse: Callable[[], None]) -> CheckpointContent:
    try:
        return load_checkpoint(path, meanwhile=pulse)
    except CheckpointNotFound as error:
        raise Unopened(error, f"the folder of checkpoint '{path.name}' is gone from the disk") from None
    except CheckpointCorrupt as error:
        raise Unopened(error, error.message) from None


def _run(
    assignment: Assignment,
    config: TrainingConfig,
    corpus: Corpus,
    resume: CheckpointContent | None,
    ranks: Ranks,
    pipe: Pipe | None,
    emit: Emit,
    is_stopped: Callable[[], bool],
) -> str:
    import_what_it_takes(config)
    if pipe:
        pipe.pulse()
    from core.assembly import assemble
    from core.checkpoints.saving import RunIdentity
    from core.state import let_go

    def should_stop() -> bool:
        if pipe:
            pipe.pulse()
        return is_stopped()

    trainer = assemble(
        config,
        corpus,
        emit,
        should_stop,
        store=CheckpointStore(Path(assignment.checkpoints)),
        identity=RunIdentity(assignment.job_id, assignment.attempt, assignment.fence, assignment.parent),
        resume=resume,
        mode=ResumeMode(assignment.mode),
        start_step=assignment.start_step,
        end_step=assignment.end_step,
        models_root=Path(assignment.models),
        cache=Path(assignment.cache) if assignment.cache else None,
        ranks=ranks,
        meanwhile=pipe.pulse if pipe else nothing,
    )
    if resume:
        let_go(resume)
    if pipe and (resume or assignment.has_begun):
        emit(Resumed(assignment.attempt, trainer.run.step, resume["name"] if resume else None))
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
