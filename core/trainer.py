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
from core.state import RunState

PROGRESS_EVERY = 25
CLIP_FULL = 1.0
CLIP_LORA = 2.0

ShouldStop = Callable[[], bool]
SaveRun = Callable[["Trainer"], CheckpointSaved]


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
        save: Publishes a checkpoint of this run; None where nothing is kept.
    """

    parts: Parts
    run: RunState
    emit: Emit
    should_stop: ShouldStop
    save: SaveRun | None = None
    narrator: Narrator = field(init=False)
    clock: Clock = field(init=False)
    saved_step: int = field(init=False, default=-1)

    def __post_init__(self) -> None:
        self.narrator = Narrator(self.emit)
        self.clock = Clock(self.parts.config.batch_size * self.parts.block_size)

    def train(self) -> Outcome:
        """Make every update up to `end_step`, or stop at a step boundary when asked to."""
        self.begin()
        while self.run.step < self.run.end_step:
            if self.should_stop():
                return self.stop()
            loss = self.update()
            self.report_progress_if_due(loss)
            self.evaluate_if_due()
            self.save_if_due()
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
        if run.last_evaluation is None or (self.evaluation_is_due() and run.last_evaluation["step"] != run.step):
            self.evaluate()
        self.parts.model.train()

    def update(self) -> float:
        """One optimizer update on batch `step`.

        Returns:
            The loss before it, in nats.

        Raises:
            NonFiniteLoss: the weights are left as they were.
        """
        config, parts, run = self.parts.config, self.parts, self.run
        self.clock.start()
        rate = set_learning_rate(parts.optimizer, config, run.step)
        ids_BT, targets_BT = batch(
            parts.tokens.train, "train", run.step, config.seed, config.batch_size, parts.block_size, parts.device
        )
        _, loss = parts.model(ids_BT, targets_BT)
        value = self.checked("loss", loss.item())
        parts.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = self.checked("gradient norm", clip_gradients(parts.model, config))
        failpoint("trainer.updating")
        parts.optimizer.step()
        failpoint("trainer.updated")
        run.step += 1
        run.tokens_seen += ids_BT.numel()
        self.clock.stop()
        self.emit(Step(run.step, value, rate, norm, round(self.clock.tokens_per_second, 1), memory_bytes(parts.device)))
        return value

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

    def evaluate(self) -> None:
        """Measure both losses; no generator that training draws from is touched.

        A stop does not wait for it: the run that goes on from this step will measure then.

        Raises:
            NonFiniteLoss: the last checkpoint before it stays the newest.
        """
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
        """Publish a checkpoint of this step, once."""
        if self.save is None or self.saved_step == self.run.step:
            return
        if self.run.last_evaluation is not None:
            self.run.last_checkpoint_train_loss = self.run.last_evaluation["train_loss"]
        saved = self.save(self)
        self.saved_step = self.run.step
        self.emit(saved)
        self.narrator.saved(saved.name)

    def stop(self) -> Outcome:
        """Keep what has been made."""
        self.keep()
        self.narrator.stopped(self.run)
        return Outcome.STOPPED

    def finish(self) -> Outcome:
        """Keep the result, then let the model write something."""
        self.keep()
        self.narrator.finished(self.run, self.clock.elapsed)
        if self.parts.config.max_new_tokens:
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
        prompt = final_prompt(self.parts.model.name)
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
