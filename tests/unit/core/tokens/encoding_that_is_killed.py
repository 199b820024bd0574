"""An encoding that is killed: `python -m tests.unit.core.tokens.encoding_that_is_killed SOURCE CACHE`.

It notes how far it got, once, encodes some more that it never notes, says so on a line of its own, and then waits for
whoever kills it.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from core.sources.corpus import Corpus
from core.sources.files import source_file
from core.tokens import encoding, token_files
from core.tokens.encoding import Encoder
from core.tokens.tokenizer import CharacterTokenizer

ROWS_AT_ONCE = 100
BATCHES_NOT_NOTED = 5
NEVER = 1e9


def tokenizer() -> CharacterTokenizer:
    """The same in every process."""
    return CharacterTokenizer(sorted(map(chr, range(10, 128))))


class Doomed:
    """What the encoder calls between its batches.

    Args:
        cache: Where the note will be.
    """

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._num_after = 0

    def __call__(self) -> None:
        if not list(self._cache.glob("*.note")):
            return
        token_files.NOTE_SECONDS = NEVER
        self._num_after += 1
        if self._num_after > BATCHES_NOT_NOTED:
            sys.stdout.write("noted\n")
            sys.stdout.flush()
            time.sleep(600)


def main(source: Path, cache: Path) -> None:
    """Encode it, and never come to its end."""
    encoding.KEPT_FROM_BYTES, encoding.ROWS_AT_ONCE, token_files.NOTE_SECONDS = 1, ROWS_AT_ONCE, 0.0
    part = Corpus.of_one(source_file(source)).parts[0]
    Encoder(tokenizer(), cache=cache, meanwhile=Doomed(cache)).tokens(part)
    raise AssertionError("it was to be killed")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
