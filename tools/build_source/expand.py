"""Turns facts and phrasings into entries, in an order that depends on the seed alone."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tools.build_source.model import Entry, Fact, Relation

SEED = 20

T = TypeVar("T")


def stable_order(items: Iterable[T], name: Callable[[T], str]) -> list[T]:
    """Return the items shuffled by their names, the same way on every machine."""

    def rank(item: T) -> tuple[bytes, str]:
        return hashlib.sha256(f"{SEED}/{name(item)}".encode()).digest(), name(item)

    return sorted(items, key=rank)


def sentence(template: str, fact: Fact) -> str:
    """Return the template with the words of the fact and a capital letter at the start."""
    text = template.format_map(fact.slots)
    return text[:1].upper() + text[1:]


def phrasings_of(fact: Fact, relation: Relation) -> list[int]:
    """Return which questions this fact is given: the plainest one and a seeded choice."""
    others = range(1, len(relation.questions))
    chosen = stable_order(others, lambda number: f"{fact.key}/{number}")
    limit = relation.per_fact or len(relation.questions)
    return sorted([0, *chosen[: limit - 1]])


def entries_of(fact: Fact, relation: Relation) -> list[Entry]:
    """Return the entries of one fact."""
    return [
        Entry(
            subject=relation.subject,
            relation=relation.name,
            fact=fact.key,
            phrasing=number,
            question=sentence(relation.questions[number], fact),
            answer=sentence(relation.answers[number % len(relation.answers)], fact),
        )
        for number in phrasings_of(fact, relation)
    ]


def expand(facts: Sequence[Fact], relations: dict[str, Relation]) -> list[Entry]:
    """Return the entries of all facts.

    Raises:
        ValueError: a question is asked twice, or an entry is not plain ASCII.
    """
    entries: list[Entry] = []
    asked: set[str] = set()
    for fact in facts:
        for entry in entries_of(fact, relations[fact.relation]):
            if entry.question in asked:
                raise ValueError(f"asked twice: {entry.question}")
            if not entry.text.isascii():
                raise ValueError(f"not plain ASCII: {entry.text}")
            asked.add(entry.question)
            entries.append(entry)
    return entries
