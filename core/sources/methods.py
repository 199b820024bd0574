"""What is done with rows: `lm` learns all text, `sft` the answers to prompts, `dpo` preferences. Light."""

from __future__ import annotations

from collections.abc import Mapping

from core.config import TrainingConfig
from core.errors import ConfigError, SourceNoRows
from core.sources.rows import RowKind

METHODS = {RowKind.TEXT: "lm", RowKind.COMPLETION: "sft", RowKind.CHAT: "sft", RowKind.PREFERENCE: "dpo"}


def method_of(kinds: Mapping[str, RowKind], config: TrainingConfig) -> str:
    """The method of a run.

    Args:
        kinds: Name of each source → the kind of its rows.

    Raises:
        SourceNoRows: the rows are not those of the method that is asked for, or of several.
        ConfigError: the model cannot learn by it.
    """
    method = _wanted(kinds, config.method)
    if method == "dpo" and not config.is_pretrained:
        said = "preferences are taught to a model that can write already: choose model_type gpt2 or causal_lm"
        raise ConfigError([("model_type", said)])
    return method


def _wanted(kinds: Mapping[str, RowKind], wanted: str) -> str:
    methods = {name: METHODS[kind] for name, kind in kinds.items()}
    if wanted == "auto":
        if len(set(methods.values())) > 1:
            said = ", ".join(f"'{name}' has {kind} rows" for name, kind in kinds.items())
            raise SourceNoRows(f"the sources are for different methods: {said}; set method to 'lm', or give fewer")
        return next(iter(methods.values()))
    for name, kind in kinds.items():
        fits = kind is not RowKind.PREFERENCE if wanted == "lm" else methods[name] == wanted
        if not fits:
            raise SourceNoRows(f"method '{wanted}' cannot learn from source '{name}', which has {kind} rows")
    return wanted
