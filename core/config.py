"""What a run is: every hyperparameter with its default, its bounds, and the checks between them.

The environment's names are in `ENVIRONMENT`; a request's are the same in lower case, with `source` for the text.
`MODEL_TYPE` and `TEST_MODE` choose the defaults of eight settings, see `core.hyperparameters.defaults`;
`core.checkpoints.resume_rules` says what may change between a checkpoint and the run that goes on from it.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.checkpoints.before_rows import check_still_text
from core.checkpoints.resume_rules import ResumeMode, merge
from core.errors import CheckpointMismatch, ConfigError, Difference
from core.hyperparameters.data import BUNDLED_SOURCE as BUNDLED_SOURCE
from core.hyperparameters.data import DataSettings
from core.hyperparameters.defaults import DEFAULTS as DEFAULTS
from core.hyperparameters.defaults import MOST_STEPS as MOST_STEPS
from core.hyperparameters.defaults import filled
from core.hyperparameters.learning import LearningSettings
from core.hyperparameters.model import PRETRAINED as PRETRAINED
from core.hyperparameters.model import ModelSettings
from core.hyperparameters.reporting import ReportingSettings

ConfigType = TypeVar("ConfigType", bound=BaseModel)


class TrainingConfig(ReportingSettings, LearningSettings, ModelSettings, DataSettings):
    """The hyperparameters of one run, checked together and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _fill_dependent_defaults(cls, given: Any) -> Any:
        """Defaults that depend on other settings are filled in before the checks see them."""
        return filled(given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.method == "dpo" and not self.is_pretrained:
            raise ValueError("method 'dpo' needs a pretrained model: preferences are taught to what can already write")
        if self.freeze_layers and self.use_lora:
            raise ValueError("freeze_layers is for whole models: LoRA freezes all of the base anyway")
        if self.quantization != "none" and not self.is_pretrained:
            raise ValueError("quantization is for the weights of a base, and a model from scratch has none")
        if self.quantization != "none" and not self.use_lora:
            raise ValueError("quantization needs use_lora: quantized weights cannot train, adapters beside them can")
        if self.sources and self.source != self.sources[0].source:
            raise ValueError(f"source '{self.source}' is none of sources, or not the first: give one of the two")
        if self.sources and self.columns:
            raise ValueError("columns belong to one source: give them in sources, where each has its own")
        if self.optimizer == "muon" and self.use_lora:
            raise ValueError("optimizer 'muon' updates whole matrices, and LoRA trains none: use 'adamw'")
        if self.freeze_layers > self.n_layer and not self.is_pretrained:
            raise ValueError(f"freeze_layers {self.freeze_layers} is more than n_layer ({self.n_layer})")
        if self.freeze_layers == self.n_layer and not self.is_pretrained:
            self._has_more_than_blocks()
        return self

    def _has_more_than_blocks(self) -> None:
        if self.optimizer == "muon":
            raise ValueError("freeze_layers leaves no block to train, and optimizer 'muon' is for their matrices")
        if self.architecture == "modern" and self.tie_embeddings:
            raise ValueError("freeze_layers leaves nothing to train: the head is tied to the embeddings, which freeze")


class ScriptConfig(TrainingConfig):
    """A `TrainingConfig` plus what only a run from the command line decides: its folders and where it starts."""

    checkpoint_dir: Path = Field(Path("checkpoints"), description="Where checkpoints are kept.")
    log_dir: Path = Field(Path("logs"), description="Where checkpoint logs are kept.")
    output_dir: Path = Field(Path("outputs"), description="Where output files are kept.")
    cache_dir: Path = Field(Path("cache"), description="Where tokens of large sources are kept.")
    start_step: int = Field(0, ge=0, description="Updates that a resumed run has behind it.")

    @property
    def training_data_source(self) -> str:
        """The seed's name for `source`."""
        return self.source

    def training(self) -> TrainingConfig:
        """The part that decides what is trained, as a checkpoint keeps it."""
        return TrainingConfig(**{name: getattr(self, name) for name in TrainingConfig.model_fields})


ENVIRONMENT: dict[str, str] = {
    "TRAINING_DATA_SOURCE": "source",
    # COLUMNS is how wide a terminal is.
    "SOURCE_COLUMNS": "columns",
    **{name.upper(): name for name in ScriptConfig.model_fields if name not in {"source", "columns", "start_step"}},
}
"""Environment variable → field. `CHECKPOINT_PATH`, `RESUME_STEPS` and `RESUME_MODE` belong to a resume alone."""


def tokens_per_step(config: Mapping[str, Any]) -> int:
    """Tokens in one update, of all ranks together, by a configuration as plain values, maybe of an earlier release."""
    factors = ("batch_size", "block_size", "gradient_accumulation_steps", "num_processes")
    return math.prod(int(config.get(name, 1)) for name in factors)


def load_config_fresh_from_env(env: Mapping[str, str] | None = None) -> ScriptConfig:
    """The configuration of a fresh run.

    Raises:
        ConfigError: with every setting that cannot be used.
    """
    given = _from_environment(os.environ if env is None else env)
    if "sources" not in given:
        given.setdefault("source", f"sources/{BUNDLED_SOURCE}")
    with _problems_under_variables():
        return parse(ScriptConfig, given)


def load_config_from_checkpoint(
    checkpoint: Mapping[str, Any], env: Mapping[str, str] | None = None
) -> tuple[ScriptConfig, list[Difference]]:
    """The configuration of a run that goes on: the checkpoint's hyperparameters, then the environment's.

    Args:
        checkpoint: Has `config` (the saved hyperparameters) and `step`.
        env: `RESUME_STEPS` says how many more updates; `RESUME_MODE` is exact, extend or warm_start.

    Returns:
        The configuration, and each setting that differs from the checkpoint's.

    Raises:
        ConfigError: a value cannot be used.
        CheckpointMismatch: a value may not change in this mode.
    """
    environ = os.environ if env is None else env
    overrides = _from_environment(environ)
    if environ.get("RESUME_STEPS"):
        overrides["training_steps"] = environ["RESUME_STEPS"]
    folders = {name: overrides.pop(name) for name in _FOLDERS if name in overrides}
    steps_variable = "RESUME_STEPS" if environ.get("RESUME_STEPS") else "TRAINING_STEPS"
    with _problems_under_variables(mode="RESUME_MODE", training_steps=steps_variable):
        mode = parse_mode(environ.get("RESUME_MODE") or "extend")
        config, differences = resume_config(checkpoint, overrides, mode)
        start_step = 0 if mode is ResumeMode.WARM_START else checkpoint["step"]
        return parse(ScriptConfig, {**config.model_dump(), **folders, "start_step": start_step}), differences


def resume_config(
    checkpoint: Mapping[str, Any], overrides: Mapping[str, Any], mode: ResumeMode
) -> tuple[TrainingConfig, list[Difference]]:
    """Lay `overrides` over a checkpoint's configuration, as far as `mode` allows.

    Without `training_steps` among them, the run makes the updates that the saved one had left; if it had none left, as
    many as that one made.

    Args:
        checkpoint: Has `config` and `step`; `end_step`, the last update the saved run was to make, if it is known; and
            `source_sha256`, with which the caller compares the text itself, so that its name need not be the same.

    Raises:
        ConfigError: a value cannot be used.
        CheckpointMismatch: a value may not change in this mode.
    """
    before = parse(TrainingConfig, checkpoint["config"])
    left = int(checkpoint.get("end_step", 0)) - int(checkpoint["step"])
    steps = left if left > 0 and mode is not ResumeMode.WARM_START else before.training_steps
    if "num_epochs" in overrides:
        steps = MOST_STEPS
    after = parse(TrainingConfig, {**_without_opposites(before, overrides), "training_steps": steps, **overrides})
    same_content = {"source"} if checkpoint.get("source_sha256") else set()
    _check_end(checkpoint, before, after, mode)
    if mode is not ResumeMode.WARM_START:
        check_still_text(checkpoint["config"], [share.source for share in after.shares])
    dumped = before.model_dump(mode="json"), after.model_dump(mode="json")
    return after, merge(*dumped, mode, same_content=same_content)


def _without_opposites(before: TrainingConfig, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What was said before, less what an override says in another way."""
    kept = before.model_dump()
    if "training_steps" in overrides and "num_epochs" not in overrides:
        del kept["num_epochs"]
    if "source" in overrides and "sources" not in overrides:
        del kept["sources"]
    if "sources" in overrides and "source" not in overrides:
        del kept["source"], kept["columns"]
    return kept


def _check_end(checkpoint: Mapping[str, Any], before: TrainingConfig, after: TrainingConfig, mode: ResumeMode) -> None:
    """A schedule that falls knows where the run ends, so another end is another rate at every step."""
    known, end_step = int(checkpoint.get("end_step", 0)), int(checkpoint["step"]) + after.training_steps
    # How many steps other epochs are, is known where the source is read; no epochs are as many as are asked for.
    other_epochs = after.num_epochs not in (None, before.num_epochs)
    is_moved = known not in (0, int(checkpoint["step"]), end_step) or other_epochs
    if mode is ResumeMode.EXACT and after.lr_schedule != "constant" and is_moved:
        raise CheckpointMismatch(
            f"mode 'exact' ends at step {known}, since the rate of lr_schedule '{after.lr_schedule}' depends on it: "
            f"resume with mode 'extend' to end at step {end_step}",
            field="num_epochs" if other_epochs else "training_steps",
        )


def parse_mode(text: str) -> ResumeMode:
    """The resume mode of that name, or a ConfigError that lists the three."""
    try:
        return ResumeMode(text)
    except ValueError:
        names = ", ".join(mode.value for mode in ResumeMode)
        raise ConfigError([("mode", f"must be one of {names}, not {text!r}")]) from None


def config_to_dict(config: TrainingConfig) -> dict[str, Any]:
    """All hyperparameters as plain JSON values."""
    return config.model_dump(mode="json")


def parse(kind: type[ConfigType], given: Mapping[str, Any]) -> ConfigType:
    """Build `kind` from `given`, with pydantic's complaints turned into one ConfigError."""
    try:
        return kind(**given)
    except ValidationError as error:
        raise ConfigError(problems_of(error)) from None


def problems_of(error: ValidationError) -> list[tuple[str, str]]:
    """(field, sentence) for each complaint, in a user's words."""
    return [problem_of(item) for item in error.errors(include_url=False)]


def problem_of(item: Mapping[str, Any]) -> tuple[str, str]:
    """(field, sentence) for one of pydantic's error details."""
    name = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        message = "no such setting; GET /docs lists them all"
    elif item["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, not {_shown(item['input'])}"
    return name, message


def _shown(value: Any) -> str:
    # Not repr: that of a deeply nested value would recurse as deep.
    try:
        shown = _SHORT.repr(value)
    except ValueError:  # Of an integer so long that Python will not write it.
        return "a number of thousands of digits"
    return shown if len(shown) <= 80 else f"{shown[:77]}…"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


@contextmanager
def _problems_under_variables(**names: str) -> Iterator[None]:
    """Name settings as the user of a script has typed them."""
    variables = {field: variable for variable, field in ENVIRONMENT.items()} | names
    try:
        yield
    except ConfigError as error:
        raise ConfigError([(_renamed(field, variables), said) for field, said in error.problems]) from None


def _renamed(field: str, variables: Mapping[str, str]) -> str:
    """A setting, or a place within one: `sources.0.weight`."""
    name, dot, place = field.partition(".")
    return f"{variables.get(name, name)}{dot}{place}"


_FOLDERS = ("checkpoint_dir", "log_dir", "output_dir", "cache_dir")


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """Settings that are there and not empty; an empty variable counts as absent, as shells make them."""
    return {field: env[name] for name, field in ENVIRONMENT.items() if env.get(name)}
