"""The loop: from `step` to `end_step`, with evaluations, checkpoints and a stop at any step boundary.

What must survive a restart is in `RunState`, the model, the optimizer and the generators, see `core.state`; nothing
else here is remembered from one step to the next but clocks.

Shapes: B batch, T block_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import torch

from core.config import TrainingConfig
from core.data import batch
from core.errors import NonFiniteLoss, RatchetError
from core.events import CheckpointSaved, Emit, Eval, Sample, Started, Step, Warned
from core.failpoints import failpoint
from core.generation import Completion, Sampling, final_prompt
from core.models import LanguageModel
from core.narration import Narrator
from core.pace import Clock, memory_bytes
from core.parts import Parts
from core.parts import build_model as build_model
from core.parts import build_optimizer as build_optimizer
from core.saving import RunSaver
from core.state import RunState

PROGRESS_EVERY = 25
CLIP_FULL = 1.0
CLIP_LORA = 2.0

ShouldStop = Callable[[], bool]


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
    """

    parts: Parts
    run: RunState
    emit: Emit
    should_stop: ShouldStop
    saver: RunSaver | None = None
    narrator: Narrator = field(init=False)
    clock: Clock = field(init=False)
    saved_step: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.narrator = Narrator(self.emit)
        self.clock = Clock(self.parts.tokens_per_step)

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
        while self.run.step < self.run.end_step:
            if self.parts.ranks.agree(self.should_stop()):
                return self.stop()
            loss = self.update()
            self.report_progress_if_due(loss)
            self.evaluate_if_due()
            self.save_if_due()
            self.report_saved()
        return self.finish()

    def begin(self) -> None:
        """Say what is trained, and measure where it starts, unless the checkpoint knew or nothing is due there."""
        model, run = self.parts.model, self.run
        counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        num_parameters = sum(count for count, _ in counts)
        self.narrator.begun(run, self.parts, num_parameters)
        self.emit(
            Started(
                start_step=run.step,
                end_step=run.end_step,
                num_parameters=num_parameters,
                num_trainable=sum(count for count, trains in counts if trains),
                device=self.parts.device,
                train_tokens=len(self.parts.tokens.train),
                val_tokens=len(self.parts.tokens.val),
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
        rate = set_learning_rate(parts.optimizer, parts.config, run.step)
        parts.optimizer.zero_grad(set_to_none=True)
        loss = self.accumulate_gradients()
        norm = self.finish_gradients()
        failpoint("trainer.updating")
        parts.precision.update(parts.optimizer)
        failpoint("trainer.updated")
        run.step += 1
        run.tokens_seen += parts.tokens_per_step
        self.clock.stop()
        self.emit(Step(run.step, loss, rate, norm, round(self.clock.tokens_per_second, 1), memory_bytes(parts.device)))
        return loss

    def accumulate_gradients(self) -> float:
        """Add up the gradients of this rank's batches; returns the mean loss of all ranks' batches."""
        parts, num_batches = self.parts, self.parts.config.gradient_accumulation_steps
        total = 0.0
        for number in range(num_batches):
            ids_BT, targets_BT = parts.training_batch(self.run.step, number)
            with parts.precision.computing():
                _, loss = parts.model(ids_BT, targets_BT)
            total += loss.item()
            if not math.isfinite(total):
                break
            parts.precision.backward(loss if num_batches == 1 else loss / num_batches)
        return self.checked("loss", parts.ranks.mean(total / num_batches))

    def finish_gradients(self) -> float:
        """Average over ranks, undo fp16's scale, clip; returns the norm before."""
        parts = self.parts
        parts.ranks.average_gradients(parts.model.parameters())
        parts.precision.unscale(parts.optimizer)
        norm = clip_gradients(parts.model, parts.config)
        return norm if parts.precision.may_overflow(norm) else self.checked("gradient norm", norm)

    def checked(self, what: str, value: float) -> float:
        """The value, if it is a number: nothing else may reach the weights or a checkpoint.

        Raises:
            NonFiniteLoss: says at which step.
        """
        if not math.isfinite(value):
            raise NonFiniteLoss(f"the {what} became {value} at step {self.run.step}; a lower learning rate may help")
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
        losses = estimate_loss(self.parts, self.should_stop)
        if losses is None:
            return
        for name, loss in losses.items():
            self.checked(f"evaluated {name.replace('_', ' ')}", loss)
        self.run.evaluations.append({"step": self.run.step, **losses})
        if self.run.initial_train_loss is None:
            self.run.initial_train_loss = losses["train_loss"]
        self.emit(Eval(self.run.step, losses["train_loss"], losses["val_loss"]))
        self.narrator.evaluated(self.run)

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
        if self.parts.config.max_new_tokens and self.parts.ranks.leads:
            self.sample_if_possible()
        return Outcome.FINISHED

    def sample_if_possible(self) -> None:
        """Let the model write something; the result is kept already, and nothing that happens here may undo it."""
        try:
            self.sample()
        except (RatchetError, RuntimeError) as error:
            self.emit(Warned(f"no sample could be written: {error}"))

    def sample(self) -> None:
        """The text that ends a run; cut short if a stop is asked for, since the result is already kept."""
        config = self.parts.config
        prompt = final_prompt(config)
        sampling = Sampling(config.max_new_tokens, config.temperature, config.top_k, seed=config.seed)
        pieces: list[str] = []
        for piece in Completion(self.parts.model, self.parts.tokenizer, prompt, sampling):
            pieces.append(piece)
            if self.should_stop():
                break
        text = "".join(pieces)
        self.emit(Sample(self.run.step, prompt, text))
        self.narrator.sampled(prompt, text)


def run_training(trainer: Trainer) -> Outcome:
    """Train from the run's step to its end."""
    return trainer.train()


def estimate_loss(parts: Parts, should_stop: ShouldStop = lambda: False) -> dict[str, float] | None:
    """Mean loss over `eval_iters` batches of each part, the same batches every time; None if it was told to stop.

    Fixed batches make two evaluations differ by the model alone, and leave no generator in another state.
    """
    config, model = parts.config, parts.model
    was_training = model.training
    model.eval()
    means = {}
    with torch.inference_mode():
        for name, tokens, stream in (
            ("train_loss", parts.tokens.train, "train_estimate"),
            ("val_loss", parts.tokens.val, "val"),
        ):
            total = 0.0
            for index in range(config.eval_iters):
                if should_stop():
                    model.train(was_training)
                    return None
                ids_BT, targets_BT = batch(
                    tokens, stream, index, config.seed, config.batch_size, parts.block_size, parts.device
                )
                with parts.precision.computing():
                    total += model(ids_BT, targets_BT)[1].item()
            means[name] = total / config.eval_iters
    model.train(was_training)
    return means


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of the update that follows `step` updates: a straight rise over `warmup_steps`, then level."""
    if not config.use_lr_warmup:
        return config.learning_rate
    return config.learning_rate * min(1.0, (step + 1) / config.warmup_steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainingConfig, step: int) -> float:
    """Give every parameter group the step's rate, and return it."""
    rate = learning_rate(config, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def clip_gradients(model: LanguageModel, config: TrainingConfig) -> float:
    """Scale gradients down to a norm of 1.0 (2.0 with LoRA); returns the norm before."""
    limit = CLIP_LORA if config.use_lora else CLIP_FULL
    trainable = [parameter for parameter in model.parameters() if parameter.grad is not None]
    return float(torch.nn.utils.clip_grad_norm_(trainable, limit))
