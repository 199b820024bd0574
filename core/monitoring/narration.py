"""The friendly lines of a run, the same on a console and in a job's log."""

from __future__ import annotations

import math

from core.config import TrainingConfig
from core.events import Emit, Log
from core.parts import Parts
from core.state import RunState


class Narrator:
    """Turns what happens into lines for a person.

    Args:
        emit: Takes each line as a `Log` event.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit

    def say(self, line: str) -> None:
        """One line."""
        self._emit(Log(line))

    def begun(self, run: RunState, parts: Parts, num_parameters: int) -> None:
        """What is about to be trained."""
        config = parts.config
        verb = "🔄 Resuming" if run.step else "🚀 Training"
        self.say(f"{verb} {parts.model.name} on {config.source}: steps {run.step} → {run.end_step} on {parts.device}")
        self.say(
            f"🧠 {num_parameters:,} parameters, batch {config.batch_size} × {parts.block_size} tokens{_more(config)}, "
            f"learning rate {config.learning_rate:g}"
        )

    def progressed(self, run: RunState, loss: float, tokens_per_second: float, seconds_left: float) -> None:
        """The line between evaluations."""
        self.say(
            f"⏳ step {run.step}/{run.end_step}: loss {loss:.4f}, "
            f"{tokens_per_second:,.0f} tokens/s, {_duration(seconds_left)} left"
        )

    def evaluated(self, run: RunState) -> None:
        """Both losses, and how far they have come since the beginning and since the last checkpoint."""
        last = run.last_evaluation
        assert last is not None
        self.say(
            f"📊 step {run.step}/{run.end_step}: train loss {last['train_loss']:.4f}, val loss {last['val_loss']:.4f}"
        )
        if run.initial_train_loss is not None and len(run.evaluations) > 1:
            self.say(f"📉 Net loss change since beginning: {last['train_loss'] - run.initial_train_loss:+.4f}")
        if run.last_checkpoint_train_loss is not None:
            change = last["train_loss"] - run.last_checkpoint_train_loss
            self.say(f"📉 Net loss change since last checkpoint: {change:+.4f}")

    def saved(self, name: str) -> None:
        """A checkpoint exists."""
        self.say(f"💾 Checkpoint saved: {name}")

    def gave_up(self, run: RunState, patience: int) -> None:
        """The run ends before its time."""
        self.say(f"🏁 No better validation loss in {patience} evaluations: the run ends at step {run.step}")

    def stopped(self, run: RunState) -> None:
        """The run was asked to stop and has."""
        self.say(f"🛑 Stopped at step {run.step}/{run.end_step}, as asked")

    def finished(self, run: RunState, seconds: float) -> None:
        """The last step is made."""
        self.say(f"✅ Training finished at step {run.step} after {_duration(seconds)}")

    def sampled(self, prompt: str, text: str) -> None:
        """What the model writes now; the prompt is named, not repeated in the text."""
        shown = f" after {prompt!r}" if prompt.strip() else ""
        self.say(f"✨ The model writes{shown}:")
        for line in text.splitlines() or [""]:
            self.say(f"   {line}")


def _more(config: TrainingConfig) -> str:
    """What else makes one update, where it is more than one batch in one process."""
    batches, processes = config.gradient_accumulation_steps, config.num_processes
    said = f" × {batches} batches" if batches > 1 else ""
    return f"{said} × {processes} processes" if processes > 1 else said


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown time"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m {whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h {whole % 3600 // 60:02d}m"
