"""What a configuration says of its sources."""

from __future__ import annotations

import pytest

from core.config import TrainingConfig, parse
from core.errors import ConfigError


@pytest.mark.parametrize("names", [("a", "a"), ("a", "./a"), ("b/a", "b//a"), ("b/a", "b/./a/")])
def test_a_source_is_there_once_however_it_is_written(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match="is there more than once: give it a larger weight instead"):
        parse(TrainingConfig, {"sources": [{"source": name} for name in names]})


def test_sources_of_one_name_in_two_folders_are_two() -> None:
    config = parse(TrainingConfig, {"sources": [{"source": "b/a"}, {"source": "a"}]})
    assert [share.source for share in config.shares] == ["b/a", "a"]
