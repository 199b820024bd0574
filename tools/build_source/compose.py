"""Decides which entries train and which validate, and puts them in order.

Whoever reads the file takes its last tenth as the validation part, so the split is
made here: the training part is exactly nine times as long as the validation part, and
the cut falls between two entries.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from tools.build_source.expand import expand, stable_order
from tools.build_source.facts import all_facts
from tools.build_source.model import Composition, Entry
from tools.build_source.phrasings import RELATIONS
from tools.build_source.similarity import NearDuplicateIndex

FIRST_QUESTION = "What is the capital of France?"

TRAINING_TO_VALIDATION = 9

# A little more than a tenth is set aside, and the surplus goes back to training.
SHARE_SET_ASIDE = 0.11

# A fact asked about in the validation part is stated at least this often in training.
STATEMENTS_LEFT = 3

# Entries of this subject may be dropped to make the lengths come out even.
SPARE_SUBJECT = "arithmetic"

# Any length from here on is a sum of lengths of spare entries.
SMALLEST_SURPLUS = 600


def length(entries: Sequence[Entry]) -> int:
    """Return how many characters the entries take up with the blank line after each."""
    return sum(len(entry.text) + 2 for entry in entries)


def set_aside(entries: Sequence[Entry]) -> list[Entry]:
    """Return entries for validation: one per fact at most, each unlike every other entry."""
    index = NearDuplicateIndex(entry.text for entry in entries)
    by_relation: defaultdict[str, defaultdict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for entry in entries:
        by_relation[entry.relation][entry.fact].append(entry)
    chosen: list[Entry] = []
    for facts in by_relation.values():
        wanted = SHARE_SET_ASIDE * sum(length(statements) for statements in facts.values())
        for statements in stable_order(facts.values(), lambda found: found[0].fact):
            if wanted <= 0:
                break
            unlike = pick_unlike(statements, index)
            chosen.extend(unlike)
            wanted -= length(unlike)
    return stable_order(chosen, lambda entry: entry.question)


def pick_unlike(statements: Sequence[Entry], index: NearDuplicateIndex) -> list[Entry]:
    """Return one statement of a fact that resembles no other entry, or none."""
    if len(statements) <= STATEMENTS_LEFT:
        return []
    for entry in stable_order(statements, lambda statement: statement.question):
        if entry.phrasing != 0 and len(index.near_duplicates(entry.text)) == 1:
            return [entry]
    return []


def entries_summing_to(total: int, spare: Sequence[Entry]) -> list[Entry]:
    """Return spare entries whose lengths add up to the total.

    Raises:
        ValueError: no choice of them does.
    """
    reached: dict[int, tuple[int, ...]] = {0: ()}
    for position, entry in enumerate(spare):
        for size, chosen in list(reached.items()):
            larger = size + length([entry])
            if larger <= total:
                reached.setdefault(larger, (*chosen, position))
        if total in reached:
            return [spare[position] for position in reached[total]]
    raise ValueError(f"no spare entries add up to {total} characters")


def split(entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Return the training and the validation entries, in lengths of nine to one."""
    validation = set_aside(entries)
    whole = length(entries)
    while surplus(whole, validation) < SMALLEST_SURPLUS:
        validation.pop()
    tested = {entry.fact for entry in validation}
    held = {entry.question for entry in validation}
    training = [entry for entry in entries if entry.question not in held]
    spare = [
        entry
        for entry in stable_order(training, lambda entry: entry.question)
        if entry.subject == SPARE_SUBJECT and entry.phrasing and entry.fact not in tested
    ]
    dropped = {e.question for e in entries_summing_to(surplus(whole, validation), spare)}
    return [entry for entry in training if entry.question not in dropped], validation


def surplus(whole: int, validation: Sequence[Entry]) -> int:
    """Return how many characters too long the training part is for this validation part."""
    # The last entry of the file has one line end after it, not two.
    end = length(validation) - 1
    return whole - length(validation) - TRAINING_TO_VALIDATION * end


def order_training(training: Sequence[Entry]) -> list[Entry]:
    """Return the training entries shuffled, with the plain first question in front."""
    shuffled = stable_order(training, lambda entry: entry.question)
    first = [entry for entry in shuffled if entry.question == FIRST_QUESTION]
    return first + [entry for entry in shuffled if entry.question != FIRST_QUESTION]


def ensure_learnable(composition: Composition) -> None:
    """Check that training covers what validation asks.

    Raises:
        ValueError: training lacks a validation fact or phrasing, or resembles the entry.
    """
    statements = Counter(entry.fact for entry in composition.training)
    phrasings = {(entry.relation, entry.phrasing) for entry in composition.training}
    index = NearDuplicateIndex(entry.text for entry in composition.training)
    for entry in composition.validation:
        if statements[entry.fact] < STATEMENTS_LEFT:
            raise ValueError(f"training states too rarely: {entry.text}")
        if (entry.relation, entry.phrasing) not in phrasings:
            raise ValueError(f"training never asks this way: {entry.question}")
        if index.near_duplicates(entry.text):
            raise ValueError(f"training has nearly the same entry: {entry.text}")


def compose() -> Composition:
    """Return the entries of the bundled text in file order.

    Raises:
        ValueError: the data packages no longer allow a text that keeps the rules above.
    """
    training, validation = split(expand(all_facts(), RELATIONS))
    composition = Composition(tuple(order_training(training)), tuple(validation))
    ensure_learnable(composition)
    return composition
