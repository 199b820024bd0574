"""The records that pass from the fact readers to the text."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """One true statement: the relation, what it is about, and the words to fill in."""

    relation: str
    about: str
    slots: Mapping[str, str]

    @property
    def key(self) -> str:
        """Return the name that tells this fact from every other fact."""
        return f"{self.relation}/{self.about}"


@dataclass(frozen=True)
class Relation:
    """How the facts of one relation are asked and answered.

    Question number i is answered with answer i modulo the number of answers, so a
    phrasing always gets the same kind of answer. `per_fact` limits how many of the
    phrasings one fact is given; zero means all of them.
    """

    name: str
    subject: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    per_fact: int = 0


@dataclass(frozen=True)
class Entry:
    """One question with its answer, and where it came from."""

    subject: str
    relation: str
    fact: str
    phrasing: int
    question: str
    answer: str

    @property
    def text(self) -> str:
        """Return the entry as it stands in the file, without the blank line after it."""
        return f"QUESTION: {self.question}\nANSWER: {self.answer}"


@dataclass(frozen=True)
class Composition:
    """The entries of both parts in file order."""

    training: tuple[Entry, ...]
    validation: tuple[Entry, ...]

    @property
    def text(self) -> str:
        """Return the whole file."""
        return "\n\n".join(entry.text for entry in (*self.training, *self.validation)) + "\n"
