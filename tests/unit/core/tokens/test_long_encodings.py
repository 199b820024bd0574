"""An encoding that takes long says how far it is, and one that was killed is gone on with."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.events import Event, Log
from core.sources.corpus import Corpus, Part
from core.sources.files import source_file
from core.tokens import encoding
from core.tokens.encoding import Encoder
from core.tokens.tokenizer import CharacterTokenizer, Encoded
from tests.unit.core.tokens.encoding_that_is_killed import BATCHES_NOT_NOTED, ROWS_AT_ONCE, tokenizer

PROJECT = Path(__file__).parents[4]
NUM_ROWS = 2000


@pytest.fixture
def part(tmp_path: Path) -> Part:
    path = tmp_path / "many.jsonl"
    rows = ({"prompt": f"row {n}:", "completion": f" says {n * n}"} for n in range(1, NUM_ROWS + 1))
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return Corpus.of_one(source_file(path)).parts[0]


@pytest.fixture
def _kept_and_in_many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "KEPT_FROM_BYTES", 1)
    monkeypatch.setattr(encoding, "ROWS_AT_ONCE", ROWS_AT_ONCE)


class Watched(CharacterTokenizer):
    """Remembers which rows it was given to encode."""

    def __init__(self, characters: list[str]) -> None:
        super().__init__(characters)
        self.rows: list[int] = []

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        self.rows += [int(found[1]) for text in texts if (found := re.match(r"row (\d+):", text))]
        return super().encode_batch(texts)


def told(events: list[Event], name: str) -> list[int]:
    """How many tokens each line about a source says there are."""
    lines = [event.line for event in events if isinstance(event, Log) and name in event.line]
    return [int(re.search(r"([\d,]+) tokens", line)[1].replace(",", "")) for line in lines]  # type: ignore[index]


@pytest.mark.usefixtures("_kept_and_in_many_batches")
def test_an_encoding_says_how_far_it_is(part: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "TOLD_SECONDS", 0)
    events: list[Event] = []
    found = Encoder(tokenizer(), emit=events.append).tokens(part)
    counts = told(events, "many.jsonl")
    assert len(counts) == len(events) == NUM_ROWS / ROWS_AT_ONCE, "a line for each batch, and nothing else"
    assert counts == sorted(set(counts)), "each is more than the last"
    assert counts[-1] == len(found.stored)


@pytest.mark.usefixtures("_kept_and_in_many_batches")
def test_an_encoding_that_is_quick_says_nothing(part: Part) -> None:
    events: list[Event] = []
    Encoder(tokenizer(), emit=events.append).tokens(part)
    assert events == []


@pytest.mark.usefixtures("_kept_and_in_many_batches")
def test_an_encoding_that_was_killed_is_gone_on_with_by_the_next_one(part: Part, tmp_path: Path) -> None:
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    Encoder(tokenizer(), cache=undisturbed).tokens(part)
    noted = kill_one_at_work(tmp_path / "many.jsonl", broken)
    assert noted["num_rows"] == ROWS_AT_ONCE
    [written] = broken.glob("*.part")
    assert written.stat().st_size > 4 * noted["num_tokens"], "some was written that was never noted"
    assert not list(broken.glob("*.tokens"))

    watched = Watched(tokenizer().characters)
    found = Encoder(watched, cache=broken).tokens(part)
    assert watched.rows == list(range(noted["num_rows"] + 1, NUM_ROWS + 1)), (
        "no row that was noted, and each other once"
    )
    assert found.num_examples == NUM_ROWS
    [whole], [mended] = undisturbed.glob("*.tokens"), broken.glob("*.tokens")
    assert mended.name == whole.name
    assert mended.read_bytes() == whole.read_bytes()
    assert {path.suffix for path in broken.iterdir()} == {".tokens", ".lock"}


def kill_one_at_work(source: Path, cache: Path) -> dict[str, int]:
    """What a process had noted of a source when it was killed a few batches later."""
    command = [sys.executable, "-m", "tests.unit.core.tokens.encoding_that_is_killed", str(source), str(cache)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "noted\n"
        finally:
            process.kill()
        assert process.wait(60) == -signal.SIGKILL
    [note] = cache.glob("*.note")
    noted: dict[str, int] = json.loads(note.read_text())
    assert noted["num_rows"] + BATCHES_NOT_NOTED * ROWS_AT_ONCE < NUM_ROWS, "it was killed in the middle"
    return noted
