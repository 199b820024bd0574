"""Facts about letters, numerals and words."""

import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from string import ascii_uppercase

from tools.build_source.english import number_words, ordinal, plural
from tools.build_source.model import Fact

VOWELS = frozenset("AEIOU")

# Y is a vowel in some words and a consonant in others.
UNSETTLED_LETTER = "Y"

GREEK_ALPHA = 0x3B1
GREEK_OMEGA = 0x3C9
FINAL_SIGMA = 0x3C2

# The character standard spells this letter without the b that everyone else writes.
ODD_GREEK_NAME = "lamda"

NOUNS = (
    "apple baby berry bird box branch bus calf child church city cow dish dog donkey flower "
    "fly foot fox goose half house key knife lady leaf life loaf man monkey mouse ox person potato "
    "river shelf star story tomato tooth toy tree watch wife wish wolf woman"
)

ROMAN_NUMBERS = (*range(1, 21), 30, 40, 50, 60, 90, 100, 500, 1000)

ROMAN_SIGNS = (
    (1000, "M"),
    (900, "CM"),
    (500, "D"),
    (400, "CD"),
    (100, "C"),
    (90, "XC"),
    (50, "L"),
    (40, "XL"),
    (10, "X"),
    (9, "IX"),
    (5, "V"),
    (4, "IV"),
    (1, "I"),
)

WORD_NUMBERS = (*range(1, 21), *range(30, 91, 10))


def letters() -> Iterator[Fact]:
    """Yield place, neighbours and kind of each letter."""
    for place, letter in enumerate(ascii_uppercase, start=1):
        slots = {"letter": letter, "place": ordinal(place)}
        yield Fact("letter_place", letter, slots)
        yield Fact("letter_at_place", letter, slots)
        if letter != UNSETTLED_LETTER:
            kind = "vowel" if letter in VOWELS else "consonant"
            yield Fact("letter_kind", letter, {"letter": letter, "kind": kind})
    for first, second in pairwise(ascii_uppercase):
        yield Fact("next_letter", first, {"letter": first, "other": second})
        yield Fact("previous_letter", second, {"letter": second, "other": first})


def greek_names() -> list[str]:
    """Return the names of the Greek letters in order."""
    points = [point for point in range(GREEK_ALPHA, GREEK_OMEGA + 1) if point != FINAL_SIGMA]
    return [unicodedata.name(chr(point)).split()[-1].lower() for point in points]


def greek_letters() -> Iterator[Fact]:
    """Yield the follower of each Greek letter."""
    for first, second in pairwise(greek_names()):
        if ODD_GREEK_NAME not in (first, second):
            yield Fact("next_greek", first, {"letter": first, "other": second})


def plurals() -> Iterator[Fact]:
    """Yield the plural of each noun."""
    for noun in NOUNS.split():
        yield Fact("plural", noun, {"noun": noun, "plural": plural(noun)})


def roman(number: int) -> str:
    """Return the Roman numeral of a positive number."""
    numeral = ""
    for value, sign in ROMAN_SIGNS:
        count, number = divmod(number, value)
        numeral += sign * count
    return numeral


def numerals() -> Iterator[Fact]:
    """Yield Roman numerals and the names of numbers, both ways."""
    for number in ROMAN_NUMBERS:
        slots = {"number": str(number), "numeral": roman(number)}
        yield Fact("roman", str(number), slots)
        yield Fact("roman_reverse", str(number), slots)
    for number in WORD_NUMBERS:
        slots = {"number": str(number), "words": number_words(number)}
        yield Fact("number_words", str(number), slots)
        yield Fact("number_words_reverse", str(number), slots)


def word_facts() -> Iterator[Fact]:
    """Yield every fact of this subject in a fixed order."""
    for source in (letters, greek_letters, plurals, numerals):
        yield from source()
