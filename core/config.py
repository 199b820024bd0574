"""What a run is: every hyperparameter with its default, its bounds, and the checks between them.

The environment's names are in `ENVIRONMENT`; a request's are the same in lower case, with `source` for the text.
`MODEL_TYPE` and `TEST_MODE` choose the defaults of eight settings, see `DEFAULTS`; `core.resume_rules` says what may
change between a checkpoint and the run that goes on from it.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from core.errors import ConfigError, Difference
from core.resume_rules import ResumeMode, merge

ModelType = Literal["gpt2", "from_scratch", "causal_lm"]

PRETRAINED = frozenset({"gpt2", "causal_lm"})
"""Model types that start from a base's weights and tokenizer."""

ConfigType = TypeVar("ConfigType", bound=BaseModel)

BUNDLED_SOURCE = "training_data_final_merged.md"

_PRETRAINED = {
    "batch_size": 8,
    "block_size": 128,
    "training_steps": 200,
    "eval_interval": 50,
    "eval_iters": 10,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
}
_PRETRAINED_TEST = {
    **_PRETRAINED,
    "batch_size": 2,
    "block_size": 32,
    "training_steps": 10,
    "eval_interval": 5,
    "eval_iters": 2,
}

DEFAULTS: dict[tuple[str, bool], dict[str, int]] = {
    ("from_scratch", False): {
        "batch_size": 16,
        "block_size": 128,
        "training_steps": 1000,
        "eval_interval": 100,
        "eval_iters": 10,
        "n_embd": 128,
        "n_head": 4,
        "n_layer": 4,
    },
    ("from_scratch", True): {
        "batch_size": 4,
        "block_size": 32,
        "training_steps": 20,
        "eval_interval": 10,
        "eval_iters": 2,
        "n_embd": 32,
        "n_head": 2,
        "n_layer": 2,
    },
    ("gpt2", False): _PRETRAINED,
    ("gpt2", True): _PRETRAINED_TEST,
    ("causal_lm", False): _PRETRAINED,
    ("causal_lm", True): _PRETRAINED_TEST,
}
"""(model_type, test_mode) → the defaults that depend on them. Pretrained models have their own three sizes."""


class TrainingConfig(BaseModel):
    """The hyperparameters of one run, checked together and frozen."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    source: str = Field(BUNDLED_SOURCE, min_length=1, max_length=1024, description="Training text (UTF-8).")
    model_type: ModelType = Field(
        "from_scratch",
        description="`from_scratch`, `gpt2`, or `causal_lm` for any other pretrained model.",
    )
    base_model: str = Field(
        "gpt2",
        min_length=1,
        max_length=1024,
        description="For pretrained models: a hub name or a local folder with weights and tokenizer.",
    )
    test_mode: bool = Field(False, description="Choose tiny defaults, for a run of seconds.")
    use_lora: bool = Field(False, description="Train low-rank adapters, not the whole model.")
    lora_rank: int = Field(8, ge=1, le=1024, description="Rank of the adapters.")
    lora_alpha: float = Field(16.0, gt=0, le=65536, description="Scale: alpha / rank.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each adapter.")
    training_steps: int = Field(1000, ge=1, le=10_000_000, description="Optimizer updates of this run.")
    learning_rate: float = Field(1e-3, gt=0, le=10, description="Peak rate of AdamW.")
    block_size: int = Field(128, ge=1, le=131_072, description="Tokens of context.")
    batch_size: int = Field(16, ge=1, le=65_536, description="Sequences that go through the model at once.")
    gradient_accumulation_steps: int = Field(1, ge=1, le=65_536, description="Batches whose gradients make one update.")
    num_processes: int = Field(
        1, ge=1, le=1024, description="Processes (ranks) that train together, each on batches of its own."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Products are computed in it; weights stay in fp32."
    )
    deterministic: bool = Field(
        False, description="On CUDA, only algorithms that repeat to the last bit, which are slower."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout inside the model.")
    seed: int = Field(1337, ge=0, lt=2**63, description="Decides weights, batches, dropout.")
    enable_checkpoints: bool = Field(True, description="Save at each interval; the final one is saved too.")
    checkpoint_interval: int = Field(100, ge=1, le=10_000_000, description="Updates between checkpoints.")
    keep_checkpoints: int = Field(
        2,
        ge=0,
        le=1_000_000,
        description="Latest checkpoints of a run to keep; the best and the pinned ones stay, too. 0 keeps all.",
    )
    use_lr_warmup: bool = Field(True, description="Raise the rate linearly over `warmup_steps`.")
    warmup_steps: int = Field(100, ge=1, le=10_000_000, description="Updates until the peak rate is reached.")
    enable_output_to_file: bool = Field(True, description="Keep a script run's console output in a file.")
    eval_interval: int = Field(100, ge=1, le=10_000_000, description="Updates between evaluations.")
    eval_iters: int = Field(10, ge=1, le=100_000, description="Batches per part in one evaluation.")
    n_embd: int = Field(128, ge=1, le=16_384, description="Width of a from-scratch model.")
    n_head: int = Field(4, ge=1, le=256, description="Attention heads of a from-scratch model.")
    n_layer: int = Field(4, ge=1, le=256, description="Blocks of a from-scratch model.")
    temperature: float = Field(0.7, ge=0, le=10, description="Of the sample that ends a run; 0 is greedy.")
    top_k: int = Field(50, ge=1, le=1_000_000, description="Likeliest tokens that sample draws from.")
    max_new_tokens: int = Field(300, ge=0, le=8192, description="Length of that sample; 0 for none.")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|cuda(:\d{1,3})?)$",
        description="`auto` (the first of cuda, mps, cpu at hand), or one of them.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_dependent_defaults(cls, given: Any) -> Any:
        """Defaults that depend on other settings are filled in before the checks see them."""
        if not isinstance(given, dict):
            return given
        filled = {name: value for name, value in given.items() if value is not None}
        model_type = filled.get("model_type", "from_scratch")
        test_mode = _is_true(filled.get("test_mode", False))
        for name, value in DEFAULTS.get((str(model_type), test_mode), {}).items():
            filled.setdefault(name, value)
        if model_type in PRETRAINED:
            # GPT-2 is a model by itself; of the others there are thousands.
            filled.setdefault("base_model", "gpt2" if model_type == "gpt2" else _NONE_GIVEN)
            filled.setdefault("learning_rate", 2e-4 if _is_true(filled.get("use_lora", False)) else 3e-5)
        steps = filled.get("training_steps")
        if str(steps).isdecimal():
            # A tenth of the run, so that a short run also reaches its peak rate.
            filled.setdefault("warmup_steps", min(100, max(1, int(str(steps)) // 10)))
        return filled

    @field_validator("base_model", mode="before")
    @classmethod
    def _say_which_model(cls, base_model: Any) -> Any:
        if base_model == _NONE_GIVEN:
            raise ValueError("model_type 'causal_lm' needs one: the name of a model on the hub, or of a local folder")
        return base_model

    @field_validator("n_head")
    @classmethod
    def _heads_share_the_width(cls, n_head: int, info: ValidationInfo) -> int:
        n_embd = info.data.get("n_embd")
        if info.data.get("model_type") == "from_scratch" and n_embd and n_embd % n_head:
            raise ValueError(f"n_embd ({n_embd}) must be divisible by n_head ({n_head}): each head gets an equal share")
        return n_head

    @property
    def is_pretrained(self) -> bool:
        """Whether it starts from a base's weights and tokenizer."""
        return self.model_type in PRETRAINED


_NONE_GIVEN = ""


class ScriptConfig(TrainingConfig):
    """A `TrainingConfig` plus what only a run from the command line decides: its folders and where it starts."""

    checkpoint_dir: Path = Field(Path("checkpoints"), description="Where checkpoints are kept.")
    log_dir: Path = Field(Path("logs"), description="Where checkpoint logs are kept.")
    output_dir: Path = Field(Path("outputs"), description="Where output files are kept.")
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
    **{name.upper(): name for name in ScriptConfig.model_fields if name not in {"source", "start_step"}},
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
    after = parse(TrainingConfig, {**before.model_dump(), "training_steps": steps, **overrides})
    same_content = {"source"} if checkpoint.get("source_sha256") else set()
    dumped = before.model_dump(mode="json"), after.model_dump(mode="json")
    return after, merge(*dumped, mode, same_content=same_content)


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
    shown = _SHORT.repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}…"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def _is_true(value: Any) -> bool:
    return str(value).lower() in {"1", "true", "t", "yes", "y", "on"}


@contextmanager
def _problems_under_variables(**names: str) -> Iterator[None]:
    """Name settings as the user of a script has typed them."""
    variables = {field: variable for variable, field in ENVIRONMENT.items()} | names
    try:
        yield
    except ConfigError as error:
        raise ConfigError([(variables.get(field, field), said) for field, said in error.problems]) from None


_FOLDERS = ("checkpoint_dir", "log_dir", "output_dir")


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    """Settings that are there and not empty; an empty variable counts as absent, as shells make them."""
    return {field: env[name] for name, field in ENVIRONMENT.items() if env.get(name)}
