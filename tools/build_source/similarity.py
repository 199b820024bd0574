"""Tells whether two entries are nearly the same text."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

THRESHOLD = 0.6

_PUNCTUATION = re.compile(r"[^a-z0-9\s]")

Shingles = frozenset[tuple[str, ...]]


def shingles(text: str) -> Shingles:
    """Return the runs of three words of a text, in lower case and without punctuation."""
    words = _PUNCTUATION.sub("", text.lower()).split()
    return frozenset(zip(words, words[1:], words[2:], strict=False))


class NearDuplicateIndex:
    """Texts that can be searched for near-duplicates by the runs of words they share."""

    def __init__(self, texts: Iterable[str]) -> None:
        """Take the texts in; their positions are what the searches return."""
        self._shingles = [shingles(text) for text in texts]
        self._holders: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        for position, runs in enumerate(self._shingles):
            for run in runs:
                self._holders[run].append(position)

    def near_duplicates(self, text: str) -> list[int]:
        """Return the positions of all texts as similar to this one as the threshold or more."""
        runs = shingles(text)
        shared = Counter(position for run in runs for position in self._holders.get(run, ()))
        return sorted(
            position
            for position, common in shared.items()
            if common >= THRESHOLD * (len(runs) + len(self._shingles[position]) - common)
        )
