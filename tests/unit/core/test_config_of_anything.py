"""Whatever a request or a file says: a configuration, or sentences about it, and nothing else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from core.config import ScriptConfig, TrainingConfig, config_to_dict, parse
from core.errors import ConfigError


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


VALUES: list[Any] = [
    *(True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**5000, 0.5, -0.0, 1e300, math.inf, -math.inf, math.nan),
    *("", " ", "x", "0", "-1", "1e3", "²", "٣", "nan", "\ud800", "\0", "{", "[", "[[]]", "[1]", '{"a": 1}', "a,a"),
    *("x" * 5000, "1" * 5000, "[" * 5000, "é" * 250, "x/" * 500),
    *([], {}, [None], ["gpt2"], [[]], [{}], {"": None}, {"text": []}, {"source": "a"}, nested(900)),
    *([{"source": []}], [{"source": "a", "weight": "x"}], [{"source": "a", "columns": 1}], ["x"] * 5000),
]


@pytest.mark.parametrize("kind", [{}, {"model_type": "gpt2"}, {"model_type": "causal_lm"}], ids=str)
@pytest.mark.parametrize("field", list(ScriptConfig.model_fields))
def test_a_setting_of_any_kind_is_used_or_refused_in_sentences(field: str, kind: dict[str, Any]) -> None:
    for value in VALUES:
        try:
            config = parse(ScriptConfig, {**kind, field: value})
        except ConfigError as error:
            str(error).encode()
        else:
            plain = config_to_dict(config.training())
            assert parse(TrainingConfig, json.loads(json.dumps(plain, allow_nan=False))) == config.training()


def test_a_model_type_that_is_a_list_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model_type: input should be 'gpt2'.*, not \['gpt2'\]"):
        parse(TrainingConfig, {"model_type": ["gpt2"]})


def test_a_base_model_that_no_folder_could_be_called_is_refused() -> None:
    assert parse(TrainingConfig, {"model_type": "causal_lm", "base_model": f"{'x' * 255}/{'y' * 255}"})
    with pytest.raises(ConfigError, match="base_model: no folder has a name of 256 bytes: 255 is the most"):
        parse(TrainingConfig, {"model_type": "causal_lm", "base_model": "é" * 128})


def test_a_tracker_named_twice_is_told_once() -> None:
    assert parse(TrainingConfig, {"trackers": "mlflow,tensorboard,mlflow"}).trackers == ("mlflow", "tensorboard")
