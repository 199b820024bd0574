"""What a run would do, before it does it: asked of a worker, and put together with what is known here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from anyio import from_thread
from pydantic import BaseModel, ConfigDict, Field

from core.config import TrainingConfig, config_to_dict, tokens_per_step
from core.forecasts.forecast_warnings import Known, warnings_of
from core.sources.files import SourceFacts
from core.sources.methods import method_of
from core.sources.rows import place_in
from jobs.database import Database
from service.errors import WorkerUnavailable
from service.inference import Inference, find_desk
from service.intake import Intake, Repeat
from service.schemas import BadRowOut, JobIn, Number

NUM_SKIPPED_SHOWN = 20

UNKNOWN = "no worker answers now, so tokens, steps per epoch and memory are not known; start one with `ratchet work`"

Method = Literal["lm", "sft", "dpo"]


class MemoryOut(BaseModel):
    """Bytes that a step of training needs at most, on its device; `total` is all but `checkpoint`."""

    weights: int
    gradients: int
    optimizer: int
    activations: int | None = Field(description="Null where an architecture cannot be foretold.")
    averages: int
    total: int | None
    checkpoint: int = Field(description="Of the machine's own memory, while a checkpoint is written.")


class SkippedOut(BaseModel):
    """Rows of a source that a run leaves out."""

    source: str
    num: int
    place: str = Field(description="What its rows' numbers count: `line`, `row` (Parquet) or `piece` (plain text).")
    first: list[BadRowOut]


class PreflightOut(BaseModel):
    """What a run would do. What takes a tokenizer or a model to know is null while no worker answers."""

    model_config = ConfigDict(protected_namespaces=())

    method: Method
    num_train_tokens: int | None = None
    num_val_tokens: int | None = None
    num_examples: int | None = Field(None, description="Null with `lm`, too, where all text is learnt.")
    tokens_per_step: int
    steps_per_epoch: float | None = None
    training_steps: int | None = Field(None, description="Updates that would be made, `num_epochs` counted in.")
    num_epochs: float | None = Field(None, description="That this is.")
    num_parameters: int | None = None
    num_trainable: int | None = None
    memory_bytes: MemoryOut | None = None
    memory_at_hand_bytes: int | None = Field(None, description="Of the worker now: of its GPU, or its machine.")
    device: str | None = None
    seconds_per_step: Number = Field(None, description="With `time=true`: of three updates that were tried.")
    seconds: Number = Field(None, description="Of all updates, without evaluations and checkpoints.")
    is_estimate: bool = Field(
        False, description="A source is larger than 8 MiB, and its tokens are reckoned from its beginning."
    )
    skipped_rows: list[SkippedOut]
    warnings: list[str]


class PieceOut(BaseModel):
    """Text of one example of a row, which is learnt or only read."""

    text: str
    learnt: bool
    example: int = Field(description="Number within its row, from 0 on.")


class PreviewRowOut(BaseModel):
    """A row of the batch: the texts of its pieces make its text, and `padding` tokens follow."""

    pieces: list[PieceOut]
    padding: int
    answer: Literal["better", "worse"] | None = Field(description="Of a preference: which of the two it is.")
    is_cut: bool = Field(description="It has more than 2,048 tokens, of which the first are shown.")


class PreviewOut(BaseModel):
    """The first training batch as the model would see it; counts are of all its rows, of which 8 are shown at most."""

    method: Method
    num_rows: int
    row_length: int = Field(description="Tokens for which each row has room.")
    num_tokens: int
    num_learnt: int
    num_padding: int
    is_estimate: bool = Field(description="A source is larger than 8 MiB, and this is made of its beginning.")
    rows: list[PreviewRowOut]
    warnings: list[str]


class Forecasts:
    """Tells what runs would do.

    Args:
        intake: Checks them as if they were submitted.
        ledger: Knows the workers.
        generation: Asks them.
    """

    def __init__(self, intake: Intake, ledger: Database, generation: Inference) -> None:
        self.intake = intake
        self.ledger = ledger
        self.generation = generation

    def preflight(self, body: JobIn, *, time: bool) -> PreflightOut:
        """What the run of a request would do.

        Raises:
            RatchetError: as when it is submitted, or what the run would end with at once.
        """
        config, facts = self._checked(body)
        try:
            told = self._ask("preflight", config, facts, time=time)
        except WorkerUnavailable:
            return _without_a_worker(config, facts)
        known, said = Known(**told.pop("known")), told.pop("said")
        if told["is_estimate"]:
            told["skipped_rows"] = _skipped(config, facts)
        return PreflightOut(**told, warnings=[*said, *warnings_of(config, facts, known)])

    def preview(self, body: JobIn) -> PreviewOut:
        """The first batch of the run of a request.

        Raises:
            WorkerUnavailable: nobody can say.
            RatchetError: as for `preflight`.
        """
        config, facts = self._checked(body)
        return PreviewOut(**self._ask("preview", config, facts))

    def _checked(self, body: JobIn) -> tuple[TrainingConfig, list[SourceFacts]]:
        """By all that a submit checks; nothing is kept."""
        spec = self.intake.fresh(body, Repeat(None, None))
        config = TrainingConfig(**spec.config)
        return config, self.intake.check_sources(config)

    def _ask(self, what: str, config: TrainingConfig, facts: Sequence[SourceFacts], **more: Any) -> dict[str, Any]:
        with self.ledger.read() as session:
            desk = find_desk(session)
        numbers = {share.source: found.num_characters for share, found in zip(config.shares, facts, strict=True)}
        asked = {"config": config_to_dict(config), "num_characters": numbers, **more}
        # Routes run in a thread of their own; the connection belongs to the event loop.
        return from_thread.run(self.generation.foretell, desk, what, asked)


def _without_a_worker(config: TrainingConfig, facts: Sequence[SourceFacts]) -> PreflightOut:
    names = [share.source for share in config.shares]
    method = method_of({name: found.kind for name, found in zip(names, facts, strict=True)}, config)
    return PreflightOut(
        method=method,
        tokens_per_step=tokens_per_step(config.model_dump()),
        training_steps=config.training_steps if config.num_epochs is None else None,
        skipped_rows=_skipped(config, facts),
        warnings=[UNKNOWN, *warnings_of(config, facts)],
    )


def _skipped(config: TrainingConfig, facts: Sequence[SourceFacts]) -> list[SkippedOut]:
    return [
        SkippedOut(
            source=share.source,
            num=found.num_bad_rows,
            place=place_in(found.format),
            first=[BadRowOut(number=row.number, reason=row.reason) for row in found.bad_rows[:NUM_SKIPPED_SHOWN]],
        )
        for share, found in zip(config.shares, facts, strict=True)
    ]
