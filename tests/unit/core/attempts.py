"""Runs that are killed with SIGKILL and begun again until they finish: `python -m tests.unit.core.attempts`.

Each line on standard input is a plan, each line on standard output what came of it. Every attempt is a process of its
own, forked from this one, so that torch is imported once for all of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from core import distributed
from core.assembly import assemble
from core.checkpointing import CheckpointStore, first_whole, load_checkpoint
from core.checkpoints.saving import RunIdentity
from core.config import TrainingConfig, parse
from core.events import Event
from core.imports import import_torch, import_transformers
from core.libraries import import_peft
from core.machine.failpoints import VARIABLE
from core.machine.processes import exit_with_parent, importing
from core.objectives import NextToken
from core.sources.files import read_source
from core.tokens.batches import Batch
from core.trainer import Trainer

RUN = "run_killed"
ATTEMPT_SECONDS = 60


def carry_out(plan: dict[str, Any]) -> dict[str, Any]:
    """Attempt after attempt, each with the next kill of the plan, and one more in peace.

    A kill is a failpoint's `site:kill@n`, or a number of seconds after which rank 0 or, below zero, rank 1 is killed.
    """
    num_killed = 0
    for kill in [*plan["kills"], None]:
        status = _attempt(plan, kill)
        if os.WIFSIGNALED(status):
            num_killed += 1
        elif os.WEXITSTATUS(status):
            return {"failed": Path(plan["folder"], "failure").read_text()}
    return {"num_killed": num_killed}


def _attempt(plan: dict[str, Any], kill: str | float | None) -> int:
    process = os.fork()
    if process == 0:
        os._exit(_run_as_rank_0(plan, kill))
    if isinstance(kill, float):
        time.sleep(kill)
        os.kill(process, signal.SIGKILL)
    deadline = time.monotonic() + ATTEMPT_SECONDS
    while True:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return status
        if time.monotonic() > deadline:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.002)


def _run_as_rank_0(plan: dict[str, Any], kill: str | float | None) -> int:
    exit_with_parent(signal.SIGKILL)
    if isinstance(kill, str):
        os.environ[VARIABLE] = kill
    num_ranks = plan["config"].get("num_processes", 1)
    if num_ranks > 1:
        meeting = Path(plan["folder"]) / f"meeting-{os.getpid()}"
        os.environ.update({"WORLD_SIZE": str(num_ranks), distributed.RENDEZVOUS_VARIABLE: str(meeting)})
        for rank in range(1, num_ranks):
            if os.fork() == 0:
                exit_with_parent(signal.SIGKILL)
                os.environ["RANK"] = str(rank)
                os.environ.pop(VARIABLE, None)
                os._exit(_run(plan))
        os.environ["RANK"] = "0"
    return _run(plan)


def _run(plan: dict[str, Any]) -> int:
    try:
        _train(plan)
    except BaseException:
        Path(plan["folder"], "failure").write_text(traceback.format_exc())
        return 1
    return 0


def _train(plan: dict[str, Any]) -> None:
    folder = Path(plan["folder"])
    config = parse(TrainingConfig, plan["config"])
    ranks = distributed.join("cpu")
    store = CheckpointStore(folder / "checkpoints")
    newest, _ = first_whole(sorted(store.of_run(RUN), key=lambda item: item.step, reverse=True))
    # All ranks have to have looked before the first one goes on to retire what they found.
    ranks.gather(None)
    with (folder / "events").open("a", buffering=1) as said:

        def emit(event: Event) -> None:
            if ranks.leads and event.kind in {"step", "eval", "warning"}:
                data = {name: value for name, value in event.data().items() if name not in _MEASURED}
                said.write(json.dumps([event.kind, data]) + "\n")

        trainer = assemble(
            config,
            read_source(plan["source"]),
            emit,
            lambda: False,
            store=store,
            identity=RunIdentity(own=RUN),
            resume=load_checkpoint(newest.path) if newest else None,
            start_step=0,
            end_step=config.training_steps,
            ranks=ranks,
        )
        _run_short(trainer, plan.get("short"))
        trainer.train()


def _run_short(trainer: Trainer, when: tuple[int, str, int] | None) -> None:
    """One rank has no memory for a whole batch, at one step alone: another program took some for that long.

    Args:
        when: The rank; what it computes, `loss` to learn or `measure` to evaluate; and the step.
    """
    if when is None or when[0] != trainer.parts.ranks.rank:
        return
    _, what, step = when
    honest = getattr(NextToken, what)

    def limited(self: NextToken, model: Any, batch: Batch, *rest: Any) -> Any:
        if trainer.run.step == step and len(batch.ids_BT) == trainer.parts.config.batch_size:
            raise MemoryError
        return honest(self, model, batch, *rest)

    setattr(NextToken, what, limited)


_MEASURED = frozenset({"tokens_per_second", "memory_bytes", "mfu"})


def main() -> None:
    """Plans in, outcomes out."""
    torch.set_num_threads(1)
    # What an attempt would import, once for all of them.
    import_torch()
    import_transformers()
    with importing():
        import_peft()
        from peft.tuners.lora import LoraModel  # noqa: F401  # for its imports alone

    for line in sys.stdin:
        sys.stdout.write(json.dumps(carry_out(json.loads(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
