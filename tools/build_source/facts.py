"""All facts of all subjects."""

from itertools import chain

from tools.build_source.arithmetic import arithmetic_facts
from tools.build_source.astronomy import astronomy_facts
from tools.build_source.chemistry import chemistry_facts
from tools.build_source.geography import geography_facts
from tools.build_source.measures import measure_facts
from tools.build_source.model import Fact
from tools.build_source.words import word_facts


def all_facts() -> list[Fact]:
    """Return every fact once, in a fixed order.

    Raises:
        ValueError: two facts have the same key, or a word to fill in is empty.
    """
    facts = list(
        chain(
            geography_facts(),
            chemistry_facts(),
            astronomy_facts(),
            measure_facts(),
            word_facts(),
            arithmetic_facts(),
        )
    )
    keys: set[str] = set()
    for fact in facts:
        if fact.key in keys:
            raise ValueError(f"the fact {fact.key} was read twice")
        if not all(value.strip() == value and value for value in fact.slots.values()):
            raise ValueError(f"the fact {fact.key} has an empty or padded word: {fact.slots}")
        keys.add(fact.key)
    return facts
