"""English word forms, as the package for them gives them."""

import inflect

_ENGINE = inflect.engine()


def ordinal(number: int) -> str:
    """Return the ordinal in words, such as third."""
    return str(_ENGINE.number_to_words(str(_ENGINE.ordinal(str(number)))))


def number_words(number: int) -> str:
    """Return the name of the number, such as fourteen."""
    return str(_ENGINE.number_to_words(str(number)))


def plural(noun: str) -> str:
    """Return the plural of the noun."""
    return str(_ENGINE.plural_noun(noun))


def with_article(noun: str) -> str:
    """Return the noun with a or an before it."""
    return str(_ENGINE.a(noun))
