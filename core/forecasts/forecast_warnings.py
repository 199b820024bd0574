"""What a user should know of a run before it begins: one sentence each, with the numbers it is about. Light.

Without a tokenizer and a model little is known; `Known` is what a worker has found out with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from core.config import DEFAULTS, MOST_STEPS, TrainingConfig
from core.errors import RatchetError
from core.sources.facts import SourceFacts
from core.sources.methods import method_of
from core.sources.rows import RowKind

MANY_EPOCHS = 20
FEW_EXAMPLES = 10
VALIDATION_PART = 0.1
"""As in `core.data`, which takes torch to look at."""

MUCH_PADDING = 0.5
ROOM, ROOM_ON_CPU = 0.9, 0.6
"""Of the memory at hand. The C library keeps of what a step lets go as much as two thirds of what it needs: to give it
back at once would take a quarter of the speed."""

HALF = 0.5


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates that are usual for a kind of run."""

    what: str
    low: float
    high: float
    usual: str


RATES = {
    "full": Rates("for all weights of a pretrained model", 1e-6, 2e-4, "1e-05 to 5e-05"),
    "lora": Rates("for adapters of a pretrained model", 1e-6, 2e-3, "1e-04 to 5e-04"),
    "scratch": Rates("for a model from scratch", 1e-6, 1e-2, "3e-04 to 3e-03"),
    "dpo": Rates("for preferences", 1e-8, 5e-4, "5e-07 to 5e-05"),
}
MUON_HIGH = 0.1

OF_SCRATCH = ("tokenizer", "bpe_vocab_size", "architecture", "n_embd", "n_head", "n_layer")
OF_MODERN = ("activation", "qk_norm", "tie_embeddings")
OF_ADAPTERS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets", "use_rslora", "use_dora")

IGNORED: list[tuple[tuple[str, ...], str, Callable[[TrainingConfig], bool]]] = [
    (OF_ADAPTERS, "without use_lora", lambda config: not config.use_lora),
    ((*OF_SCRATCH, *OF_MODERN), "in a pretrained model, which is as it is", lambda config: config.is_pretrained),
    (OF_MODERN, "in a classic model", lambda config: not config.is_pretrained and config.architecture == "classic"),
    (
        ("bpe_vocab_size",),
        "with a tokenizer of characters",
        lambda config: not config.is_pretrained and config.tokenizer == "characters",
    ),
    (("base_model",), "in a model from scratch", lambda config: not config.is_pretrained),
    (("muon_learning_rate",), "without optimizer 'muon'", lambda config: config.optimizer != "muon"),
    (("min_lr_ratio",), "under a constant rate", lambda config: config.lr_schedule == "constant"),
    (("decay_fraction",), "without lr_schedule 'wsd'", lambda config: config.lr_schedule != "wsd"),
    (
        ("early_stopping_min_delta",),
        "without early_stopping_patience",
        lambda config: not config.early_stopping_patience,
    ),
]
"""Settings that do nothing where something else is set, how that is said, and when. At their defaults nobody asked."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a run once its beginning has been encoded and its model laid out; bytes and tokens."""

    num_val_tokens: int
    num_val_examples: int | None
    longest_example: int | None
    padding: float
    training_steps: int
    num_epochs: float
    max_context: int
    vocab_size: int
    is_estimate: bool
    memory_bytes: int | None
    activation_bytes: int | None
    checkpoint_bytes: int
    memory_at_hand_bytes: int
    device: str


def warnings_of(config: TrainingConfig, facts: Sequence[SourceFacts], known: Known | None = None) -> list[str]:
    """All that there is to warn of.

    Args:
        facts: Of each source of the run, in the order of its configuration.
        known: What a worker has found out; without it, only that is said which is certain anyway.
    """
    said = [*_of_validation(config, facts, known), *_of_rates(config, facts), *_of_length(config, known)]
    said += [*_of_tokens(config, facts, known), *_of_ignored(config)]
    return said + (list(_of_shape(config, known)) + list(_of_memory(config, known)) if known else [])


def _of_validation(config: TrainingConfig, facts: Sequence[SourceFacts], known: Known | None) -> Iterator[str]:
    examples = _num_val_examples(facts) if known is None else known.num_val_examples
    if _is_of_examples(config, facts):
        if examples is not None and examples < FEW_EXAMPLES:
            yield (
                f"only {examples} example{'s are' if examples != 1 else ' is'} kept back to validate with: "
                "the validation loss says little, so give more rows"
            )
        return
    tokens, size = _num_val_tokens(config, facts, known), config.batch_size * config.block_size
    if tokens is not None and tokens < size:
        yield (
            f"the part kept back to validate with has {tokens:,} tokens, less than one batch of {size:,}: "
            "its loss is that of the same few lines again and again"
        )


def _of_rates(config: TrainingConfig, facts: Sequence[SourceFacts]) -> Iterator[str]:
    rates = RATES[_kind(config, facts)]
    if config.learning_rate > rates.high:
        yield (
            f"learning_rate {config.learning_rate:g} is high {rates.what}, where {rates.usual} is usual: "
            "the loss may jump, and what the model knows may be lost"
        )
    if config.learning_rate < rates.low:
        yield f"learning_rate {config.learning_rate:g} is low {rates.what}, where {rates.usual} is usual"
    if config.optimizer == "muon" and config.muon_learning_rate > MUON_HIGH:
        yield f"muon_learning_rate {config.muon_learning_rate:g} is high: 0.005 to 0.05 is usual"


def _of_length(config: TrainingConfig, known: Known | None) -> Iterator[str]:
    steps = known.training_steps if known else config.training_steps
    # Of a run in epochs, it is a tenth at most.
    if config.use_lr_warmup and config.num_epochs is None and config.warmup_steps > steps:
        yield (
            f"warmup_steps {config.warmup_steps:,} is more than the run's {steps:,} steps: "
            "it ends before its rate is reached"
        )
    # One in epochs is as long as its source says.
    is_counted = known is not None or config.training_steps != MOST_STEPS
    patience = config.early_stopping_patience
    if is_counted and patience * config.eval_interval > steps:
        yield (
            f"early_stopping_patience {patience:,} takes {patience * config.eval_interval:,} steps at an eval_interval "
            f"of {config.eval_interval:,}, and the run has {steps:,}: it never ends early"
        )
    # A test run has nothing that would be missed.
    is_kept = config.enable_checkpoints and not config.test_mode
    if is_kept and is_counted and config.checkpoint_interval > steps:
        yield (
            f"checkpoint_interval {config.checkpoint_interval:,} is more than the run's {steps:,} steps: "
            "nothing is kept before its end, so a run that is killed begins anew"
        )
    epochs = known.num_epochs if known else config.num_epochs
    if epochs is not None and epochs > MANY_EPOCHS:
        during = f" in {steps:,} steps" if is_counted else ""
        yield (
            f"the source comes {epochs:,.0f} times over{during}: "
            f"after {MANY_EPOCHS} the model mostly learns it by heart"
        )


def _of_ignored(config: TrainingConfig) -> Iterator[str]:
    defaults = DEFAULTS[config.model_type, config.test_mode]
    fields = TrainingConfig.model_fields
    for names, why, is_ignored in IGNORED:
        given = [name for name in names if getattr(config, name) != defaults.get(name, fields[name].default)]
        if given and is_ignored(config):
            yield f"{', '.join(given)} {'changes' if len(given) == 1 else 'change'} nothing {why}"


def _of_tokens(config: TrainingConfig, facts: Sequence[SourceFacts], known: Known | None) -> Iterator[str]:
    if config.is_pretrained or config.tokenizer != "bpe":
        return
    characters = sum(found.num_characters for found in facts)
    # Each pair that becomes a token is there twice at least.
    most = 257 + characters // 2
    found = known.vocab_size if known else most
    if found < config.bpe_vocab_size and not (known and known.is_estimate):
        about = "has" if known else "has at most"
        yield (
            f"bpe_vocab_size {config.bpe_vocab_size:,} is more than {characters:,} characters can fill: "
            f"the vocabulary {about} {found:,} tokens"
        )


def _of_shape(config: TrainingConfig, known: Known) -> Iterator[str]:
    if config.block_size > known.max_context:
        yield (
            f"block_size {config.block_size:,} is more than the model's {known.max_context:,} positions; "
            f"training with {known.max_context:,}"
        )
    if known.padding > MUCH_PADDING and not config.packing:
        longest = f", of which none has more than {known.longest_example:,} tokens" if known.longest_example else ""
        yield (
            f"{known.padding:.0%} of each batch is padding, since with packing off every example has a row of its "
            f"own{longest}: turn packing on"
        )
    elif known.longest_example and not config.packing and config.block_size > 4 * known.longest_example:
        yield (
            f"block_size {config.block_size:,} is much more than the longest example's "
            f"{known.longest_example:,} tokens: a smaller one gives the same batches"
        )


def _of_memory(config: TrainingConfig, known: Known) -> Iterator[str]:
    if known.memory_bytes is None:
        yield "how much memory a step needs cannot be foretold for this architecture"
        return
    at_hand = known.memory_at_hand_bytes
    needed = known.memory_bytes
    if known.device == "cpu":
        # All processes share it, and so does the checkpoint that is being written.
        needed = known.memory_bytes * config.num_processes + known.checkpoint_bytes
    if needed > at_hand:
        yield (
            f"the run needs about {_gib(needed)} of memory, and {_gib(at_hand)} is at hand: give a smaller "
            "batch_size or block_size, or use_lora"
        )
    elif needed > (ROOM_ON_CPU if known.device == "cpu" else ROOM) * at_hand:
        yield f"the run needs about {_gib(needed)} of the {_gib(at_hand)} of memory at hand: it may not fit"
    steps = config.gradient_accumulation_steps
    together = known.memory_bytes + (known.activation_bytes or 0) * (steps - 1)
    if steps > 1 and together < HALF * at_hand:
        yield (
            f"gradient_accumulation_steps {steps} is not needed: a batch_size of {steps * config.batch_size:,} needs "
            f"about {_gib(together)} of the {_gib(at_hand)} at hand, and is faster"
        )


def _num_val_examples(facts: Sequence[SourceFacts]) -> int:
    return sum(max(1, int(found.num_rows * VALIDATION_PART)) for found in facts)


def _num_val_tokens(config: TrainingConfig, facts: Sequence[SourceFacts], known: Known | None) -> int | None:
    if known is not None:
        return known.num_val_tokens
    if config.is_pretrained or config.tokenizer != "characters":
        return None
    return sum(max(int(found.num_characters * VALIDATION_PART), config.block_size + 1) for found in facts)


def _is_of_examples(config: TrainingConfig, facts: Sequence[SourceFacts]) -> bool:
    return _method(config, facts) in ("sft", "dpo")


def _kind(config: TrainingConfig, facts: Sequence[SourceFacts]) -> str:
    if not config.is_pretrained:
        return "scratch"
    if _method(config, facts) == "dpo":
        return "dpo"
    return "lora" if config.use_lora else "full"


def _method(config: TrainingConfig, facts: Sequence[SourceFacts]) -> str:
    kinds = {f"{number}": found.kind for number, found in enumerate(facts)}
    try:
        return method_of(kinds or {"": RowKind.TEXT}, config)
    except RatchetError:  # Said elsewhere, and better.
        return "lm"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 2**30 else f"{max(1, round(num_bytes / 2**20)):,} MiB"
