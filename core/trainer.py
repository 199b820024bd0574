"""The loop: from `step` to `end_step`, with evaluations, checkpoints and a stop at any step boundary.

What must survive a restart is in `RunState`, the model, the optimizer and the generators, see `core.state`; nothing
else here is remembered from one step to the next but clocks.

Shapes: B batch, T block_size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from core.checkpoints.saving import RunSaver
from core.errors import NonFiniteLoss, RatchetError
from core.events import CheckpointSaved, Emit, Eval, Started, Step, Warned
from core.machine.failpoints import failpoint
from core.memory import Portions
from core.models.four_bit import num_weights
from core.monitoring.evaluation import Evaluation, ShouldStop, evaluate
from core.monitoring.evaluation import estimate_loss as estimate_loss
from core.monitoring.narration import Narrator
from core.monitoring.pace import Clock, memory_bytes
from core.monitoring.patience import should_stop_early
from core.monitoring.samples import write_samples
from core.monitoring.utilization import Utilization, flops_per_token
from core.optimization.updates import clip_gradients, set_learning_rate
from core.parts import Parts
from core.parts import build_model as build_model
from core.parts import build_optimizer as build_optimizer
from core.state import RunState

PROGRESS_EVERY = 25


class Outcome(StrEnum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(slots=True)
class Trainer:
    """One run, fresh or resumed.

    Args:
        parts: Model, optimizer, data.
        run: Where the run is; it moves on with every update.
        emit: Takes the run's events.
        should_stop: Asked at every step boundary.
        saver: Keeps checkpoints of this run; None where nothing is kept.
        start_step: Where this run began, however often it was resumed since.
        saved_step: The step that is kept already; -1 for none.
    """

    parts: Parts
    run: RunState
    emit: Emit
    should_stop: ShouldStop
    saver: RunSaver | None = None
    start_step: int = 0
    saved_step: int = -1
    narrator: Narrator = field(init=False)
    portions: Portions = field(init=False)
    clock: Clock = field(init=False)
    utilization: Utilization = field(init=False)
    num_tokens: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.narrator = Narrator(self.emit)
        parts = self.parts
        self.portions = Portions(self.run, parts.ranks, parts.config.batch_size, parts.device, self.emit)
        self.clock = Clock(parts.tokens_per_step)
        flops = flops_per_token(parts.model, parts.block_size, parts.method)
        self.utilization = Utilization(flops, parts.device, parts.precision.product_type, parts.ranks.world_size)

    def train(self) -> Outcome:
        """Make every update up to `end_step`, or stop at a step boundary when asked to."""
        try:
            return self.run_on()
        except BaseException:
            self.say_what_was_kept()
            raise

    def run_on(self) -> Outcome:
        """The loop."""
        self.begin()
        while self.run.step < self.run.end_step and not self.is_out_of_patience():
            if self.portions.told(self.should_stop()):
                return self.stop()
            loss = self.update()
            self.report_progress_if_due(loss)
            self.evaluate_if_due()
            self.sample_if_due()
            self.save_if_due()
            self.report_saved()
        return self.finish()

    def begin(self) -> None:
        """Say what is trained, and measure where it starts, unless the checkpoint knew or nothing is due there."""
        model, run = self.parts.model, self.run
        num_parameters, num_trainable = num_weights(model)
        self.narrator.begun(run, self.parts, num_parameters)
        self.emit(
            Started(
                start_step=run.step,
                end_step=run.end_step,
                num_parameters=num_parameters,
                num_trainable=num_trainable,
                device=self.parts.device,
                train_tokens=self.parts.data.num_tokens["train"],
                val_tokens=self.parts.data.num_tokens["val"],
            )
        )
        for warning in self.parts.warnings():
            self.emit(Warned(warning))
        if run.last_evaluation is None or self.lacks_evaluation():
            self.evaluate()
        self.parts.model.train()

    def update(self) -> float:
        """One optimizer update on the batches of this step.

        Returns:
            The mean loss before it, in nats.

        Raises:
            NonFiniteLoss: the weights are left as they were.
        """
        parts, run = self.parts, self.run
        self.clock.start()
        rate = set_learning_rate(parts.optimizer, parts.config, run.step, run.end_step, run.num_rising)
        loss = self.accumulate_gradients()
        norm = self.finish_gradients()
        failpoint("trainer.updating")
        parts.precision.update(parts.optimizer)
        if parts.averages:
            parts.averages.update(parts.model)
        failpoint("trainer.updated")
        run.step += 1
        num_tokens = self.num_tokens * parts.ranks.world_size
        run.tokens_seen += num_tokens
        self.clock.stop(num_tokens)
        self.emit(Step(run.step, loss, rate, norm, *self.pace()))
        return loss

    def pace(self) -> tuple[float, int, float | None]:
        """Tokens per second, bytes of memory, and the part of the device's arithmetic that the model took."""
        rate = self.clock.tokens_per_second
        return round(rate, 1), memory_bytes(self.parts.device), self.utilization.at(rate)

    def accumulate_gradients(self) -> float:
        """Add up the gradients of this rank's batches; returns the mean loss of all ranks' batches."""
        total = self.portions.until_it_fits(self.add_gradients)
        return self.checked("loss of {batches}", self.portions.mean_of_step(total))

    def add_gradients(self) -> float:
        """The gradients of this rank's batches, each in as many parts as memory asks for."""
        parts, step = self.parts, self.run.step
        parts.optimizer.zero_grad(set_to_none=True)
        self.num_tokens = 0
        total, learnt = 0.0, parts.num_learnt(step)
        for number in range(parts.config.gradient_accumulation_steps):
            whole = parts.training_batch(step, number)
            self.num_tokens += whole.ids_BT.numel()
            share_of_whole = parts.share(learnt, whole)
            for batch, share in whole.in_parts(self.run.num_parts):
                share *= share_of_whole
                if share == 0:
                    continue
                with parts.precision.computing():
                    loss = parts.objective.loss(parts.model, batch)
                total += loss.item() * share
                if not math.isfinite(total):
                    return total
                parts.precision.backward(loss if share == 1 else loss * share)
        return total

    def finish_gradients(self) -> float:
        """Average over ranks, undo fp16's scale, clip; returns the norm before."""
        parts = self.parts
        parts.ranks.average_gradients(parts.model.parameters())
        parts.precision.unscale(parts.optimizer)
        norm = clip_gradients(parts.model, parts.config)
        return norm if parts.precision.may_overflow(norm) else self.checked("gradient norm of {batches}", norm)

    def checked(self, what: str, value: float) -> float:
        """The value, if it is a number: nothing else may reach the weights or a checkpoint.

        Args:
            what: The value; `{batches}` stands for those of this step.

        Raises:
            NonFiniteLoss: says at which step, and of which batches.
        """
        if not math.isfinite(value):
            what = what.format(batches=self.parts.batches_of(self.run.step))
            # Batches go on from the checkpoint's place, so all from there up to this one are to be left out.
            skip = self.parts.config.skip_batches + self.run.step - max(self.saved_step, 0) + 1
            raise NonFiniteLoss(
                f"the {what} became {value} at step {self.run.step}: go on from the last checkpoint with a lower "
                f"learning_rate, or with skip_batches={skip} to leave out the batches since then"
            )
        return value

    def report_progress_if_due(self, loss: float) -> None:
        """A line every 25 steps, where no evaluation says more."""
        run = self.run
        if run.step % PROGRESS_EVERY == 0 and run.step % self.parts.config.eval_interval and run.step < run.end_step:
            seconds_left = (run.end_step - run.step) * self.clock.seconds_per_step
            self.narrator.progressed(run, loss, self.clock.tokens_per_second, seconds_left)

    def evaluate_if_due(self) -> None:
        """At every multiple of eval_interval, and at the end."""
        if self.evaluation_is_due():
            self.evaluate()

    def evaluation_is_due(self) -> bool:
        """Whether this step is one to measure at."""
        return self.run.step % self.parts.config.eval_interval == 0 or self.run.step == self.run.end_step

    def is_out_of_patience(self) -> bool:
        """Whether so many evaluations brought nothing better that the run is to end here."""
        config = self.parts.config
        if not config.early_stopping_patience:
            return False
        is_out = should_stop_early(
            self.run.evaluations,
            config.early_stopping_patience,
            config.early_stopping_min_delta,
            since_step=self.start_step,
        )
        if not self.parts.ranks.agree(is_out and self.parts.ranks.leads):
            return False
        self.narrator.gave_up(self.run, config.early_stopping_patience)
        return True

    def lacks_evaluation(self) -> bool:
        """Whether this step was to be measured at and was not."""
        last = self.run.last_evaluation
        return self.evaluation_is_due() and (last is None or last["step"] != self.run.step)

    def evaluate(self) -> None:
        """Measure both losses; no generator that training draws from is touched.

        A stop does not wait for it: the run that goes on from this step will measure then.

        Raises:
            NonFiniteLoss: the last checkpoint before it stays the newest.
        """
        if not self.parts.ranks.leads:
            return
        failpoint("trainer.evaluating")
        found = self.portions.until_it_fits(self.measure)
        if found is None:
            return
        for name, loss in found.losses.items():
            self.checked(f"evaluated {name.replace('_', ' ')}", loss)
        self.run.evaluations.append({"step": self.run.step, **found.losses})
        if self.run.initial_train_loss is None:
            self.run.initial_train_loss = found.train_loss
        self.emit(Eval(self.run.step, found.train_loss, found.val_loss, found.val_accuracy, found.val_perplexity))
        self.narrator.evaluated(self.run)

    def measure(self) -> Evaluation | None:
        """Both parts of the data; None if a stop came in between."""
        return evaluate(self.parts, self.should_stop, self.run.num_parts)

    def save_if_due(self) -> None:
        """At every multiple of checkpoint_interval."""
        config = self.parts.config
        if config.enable_checkpoints and self.run.step % config.checkpoint_interval == 0:
            self.keep()

    def keep(self) -> None:
        """Begin a checkpoint of this step, once; it is published while the run goes on."""
        if self.saver is None or self.saved_step == self.run.step:
            return
        self.report_saved(wait=True)
        if self.run.last_evaluation is not None:
            self.run.last_checkpoint_train_loss = self.run.last_evaluation["train_loss"]
        self.saver.begin(self.parts, self.run)
        self.saved_step = self.run.step

    def report_saved(self, *, wait: bool = False) -> None:
        """Tell of the checkpoint that has been published since the last call; what the disk refused is raised here."""
        for event in self.saver.published(wait=wait) if self.saver else []:
            self.emit(event)
            if isinstance(event, CheckpointSaved):
                self.narrator.saved(event.name)

    def say_what_was_kept(self) -> None:
        """The run ends on an error; a checkpoint under way is still published, and told of."""
        try:
            self.report_saved(wait=True)
        except Exception as error:  # What ended the run is what it is to be told by.
            self.emit(Warned(f"the checkpoint that was being saved is lost, too: {error}"))

    def stop(self) -> Outcome:
        """Keep what has been made."""
        self.keep()
        self.report_saved(wait=True)
        self.narrator.stopped(self.run)
        return Outcome.STOPPED

    def finish(self) -> Outcome:
        """Keep the result, then let the model write something.

        A run whose last evaluation was given up for a stop is not finished yet: it stops, and measures when it goes on.
        """
        if self.parts.ranks.agree(self.lacks_evaluation()):
            return self.stop()
        self.keep()
        self.report_saved(wait=True)
        self.narrator.finished(self.run, self.clock.elapsed)
        self.sample_if_possible()
        return Outcome.FINISHED

    def sample_if_due(self) -> None:
        """At every multiple of sample_interval but the last step, after which the run ends with samples anyway."""
        interval = self.parts.config.sample_interval
        if interval and self.run.step % interval == 0 and self.run.step < self.run.end_step:
            self.sample_if_possible()

    def sample_if_possible(self) -> None:
        """Let the model write something; what has been made is kept, and nothing that happens here may undo it."""
        config = self.parts.config
        if not (config.max_new_tokens and self.parts.ranks.leads):
            return
        try:
            for sample in write_samples(self.parts, self.run.step, self.should_stop):
                self.emit(sample)
                self.narrator.sampled(sample.prompt, sample.text)
        except (RatchetError, RuntimeError) as error:
            self.emit(Warned(f"no sample could be written: {error}"))


def run_training(trainer: Trainer) -> Outcome:
    """Train from the run's step to its end."""
    return trainer.train()
