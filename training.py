"""Train from the command line: `python3 training.py`, with everything said in environment variables.

With `CHECKPOINT_PATH` the run goes on from that checkpoint, without it a fresh run begins. The README has the table of
variables. A thin front over `core/`: the service's worker runs the same trainer.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from core.checkpointing import (
    CheckpointStore,
    close_checkpoint_log,
    create_checkpoint_log_file,
    write_checkpoint_log,
)
from core.checkpoints.fallback import load_whole
from core.config import (
    ScriptConfig,
    config_to_dict,
    load_config_fresh_from_env,
    load_config_from_checkpoint,
    parse_mode,
)
from core.errors import CheckpointPathMissing, RatchetError
from core.events import CheckpointSaved, Emit, Event, Log, Resumed, Warned
from core.imports import import_what_it_takes
from core.io_utils import (
    generate_output_filename,
    get_data_source_name,
    get_model_name,
    restore_stdout,
    setup_stdout_capture,
    write_output_file,
)
from core.machine.allocation import keep_freed_memory
from core.machine.processes import importing, wait_politely
from core.monitoring.trackers import name_of_run, remember_checkpoint, tracked
from core.sources.corpus import Corpus
from core.sources.files import source_file

if TYPE_CHECKING:
    from core.distributed import Ranks
    from core.trainer import Trainer


def main(env: Mapping[str, str] = os.environ, *, must_resume: bool = False) -> int:
    """Run what the environment describes.

    Returns:
        The exit status: 0, or 1 after an error that has been said in one sentence.
    """
    wait_politely()
    keep_freed_memory()
    try:
        Console(env, must_resume).run()
    except RatchetError as error:
        # Of several ranks, the first one says it.
        return 1 if int(env.get("RANK") or 0) else _said(error.message)
    except OSError as error:
        return _said(f"{error.strerror}: '{error.filename}'" if error.filename else str(error))
    except (RuntimeError, MemoryError) as error:
        from core.devices import as_out_of_memory

        short = as_out_of_memory(error)
        if short is None:
            raise
        return _said(short.message)
    except KeyboardInterrupt:
        print("🛑 Interrupted at once; the last checkpoint stays", file=sys.stderr)
        return 130
    return 0


class Console:
    """One run from the command line, and what it shows and keeps."""

    def __init__(self, env: Mapping[str, str], must_resume: bool) -> None:
        self.env = env
        self.path = checkpoint_path(env, must_resume)
        self.checkpoint, self.warning = load_whole(self.path) if self.path else (None, None)
        self.differences: list[str] = []
        if env.get("WORLD_SIZE") and env.get("RANK"):
            # torchrun has decided how many there are.
            env = {**env, "NUM_PROCESSES": env["WORLD_SIZE"]}
        if self.checkpoint:
            self.config, differences = load_config_from_checkpoint(self.checkpoint, env)
            self.differences = [str(item) for item in differences]
        else:
            self.config = load_config_fresh_from_env(env)
        self.stopping = False
        self.tracking_folder = self.config.output_dir / "tensorboard"
        self.emit: Emit = self.show

    def run(self) -> None:
        """Train, alone or with the other ranks; only the first of them shows and keeps anything."""
        with importing():
            from core.distributed import together

        another = [sys.executable, str(Path(__file__).resolve())]
        with together(self.config.num_processes, self.config.device, another, self.env) as ranks:
            if ranks.leads:
                self.lead(ranks)
            else:
                self.follow(ranks)

    def lead(self, ranks: Ranks) -> None:
        """Train with stdout captured, and keep the output in a file if the configuration says so."""
        tee, original = setup_stdout_capture(self.config.enable_output_to_file)
        try:
            model_name, first, last = self.train(ranks)
        finally:
            restore_stdout(original)
        if tee:
            name = generate_output_filename(model_name, get_data_source_name(self.config.source), first, last)
            kept = write_output_file(self.config.output_dir / name, config_to_dict(self.config), tee.captured())
            print(f"📝 Output kept in {kept}")

    def follow(self, ranks: Ranks) -> None:
        """Train as another rank leads, which also decides what Ctrl-C means."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        trainer = self.assemble(ranks, lambda _: None)
        trainer.train()

    def train(self, ranks: Ranks) -> tuple[str, int, int]:
        """Train; returns the model's name and the first and last step."""
        config = self.config
        for folder in (config.checkpoint_dir, config.log_dir, config.output_dir):
            folder.mkdir(parents=True, exist_ok=True)
        trainer = self.assemble(ranks, lambda event: self.emit(event))
        model_name, first = get_model_name(trainer.parts.model), trainer.run.step
        source = get_data_source_name(config.source)
        resumed = self.checkpoint is not None
        self.log_file, log_path = create_checkpoint_log_file(config.log_dir, model_name, source, resumed, first)
        if self.warning:
            self.show(Warned(self.warning))
        if self.checkpoint:
            self.show(Resumed(0, first, self.checkpoint["name"]))
        signal.signal(signal.SIGINT, self.stop_at_step)
        try:
            with self.tracked(model_name, source) as self.emit:
                trainer.train()
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            close_checkpoint_log(self.log_file, log_path)
        return model_name, first, trainer.run.step

    def assemble(self, ranks: Ranks, emit: Emit) -> Trainer:
        """The run as configured."""
        corpus = Corpus.of(self.config.shares, lambda name: source_file(source_path(name)))
        import_what_it_takes(self.config.training())
        from core.assembly import assemble
        from core.checkpoints.saving import RunIdentity
        from core.state import let_go

        config = self.config
        if ranks.leads:
            CheckpointStore(config.checkpoint_dir).sweep_abandoned()
        trainer = assemble(
            config.training(),
            corpus,
            emit,
            self.should_stop,
            store=CheckpointStore(config.checkpoint_dir) if config.enable_checkpoints else None,
            identity=RunIdentity(parent=self.checkpoint["id"] if self.checkpoint else None),
            resume=self.checkpoint,
            mode=parse_mode(self.env.get("RESUME_MODE") or "extend"),
            cache=config.cache_dir,
            ranks=ranks,
        )
        if self.checkpoint:
            let_go(self.checkpoint)
        return trainer

    def show(self, event: Event) -> None:
        """Print an event's line, and note checkpoints in their log."""
        match event:
            case Log(line):
                print(line, flush=True)
            case Warned(message):
                print(f"⚠️  {message}", flush=True)
            case Resumed(_, step, name):
                changed = f" with {', '.join(self.differences)}" if self.differences else ""
                print(f"📂 Going on from {name} at step {step}{changed}", flush=True)
            case CheckpointSaved():
                write_checkpoint_log(self.log_file, event.step, event.train_loss, event.val_loss, event.name)
                if self.config.trackers:
                    remember_checkpoint(self.tracking_folder, self.run_name, event.id)
            case _:
                pass

    def tracked(self, model_name: str, source: str) -> AbstractContextManager[Emit]:
        """Tell the trackers, too; a run that goes on from another one's last checkpoint goes on in theirs."""
        resumed = self.checkpoint["id"] if self.checkpoint else None
        self.run_name = name_of_run(self.tracking_folder, f"{model_name}_{source}", resumed)
        return tracked(self.show, self.config.training(), run_name=self.run_name, folder=self.tracking_folder)

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self.stopping

    def stop_at_step(self, *_: object) -> None:
        """The first Ctrl-C ends the run at the next step with a checkpoint; the second ends it at once."""
        self.stopping = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


def source_path(source: str) -> str:
    """A service names texts below its sources folder; here that folder is part of the path."""
    below = Path("sources") / source
    return str(below) if not Path(source).exists() and below.exists() else source


def checkpoint_path(env: Mapping[str, str], must_resume: bool) -> Path | None:
    """Where to resume from: a path, or a name below the checkpoints folder; None for a fresh run.

    Raises:
        CheckpointPathMissing: `CHECKPOINT_PATH` is there but empty, or a resume was asked for without it.
    """
    said = env.get("CHECKPOINT_PATH")
    if said is None and not must_resume:
        return None
    if not (said or "").strip():
        raise CheckpointPathMissing(
            "CHECKPOINT_PATH must say which checkpoint to resume from, for example "
            "CHECKPOINT_PATH=checkpoints/checkpoint_… python3 training.py"
        )
    path = Path(str(said).strip())
    below = Path(env.get("CHECKPOINT_DIR") or ScriptConfig.model_fields["checkpoint_dir"].default) / path
    there = below.exists() or (below.suffix == ".pt" and below.with_suffix("").exists())
    return below if not path.exists() and len(path.parts) == 1 and there else path


def _said(sentence: str) -> int:
    print(f"❌ Error: {sentence}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
