"""Facts about units of measure and about the calendar."""

import calendar
from collections.abc import Iterator

from babel import Locale
from pint import UnitRegistry

from tools.build_source.english import ordinal, plural, with_article
from tools.build_source.model import Fact

# Larger unit, smaller unit. Units that differ between countries are left out.
UNIT_PAIRS = (
    ("ampere", "milliampere"),
    ("byte", "bit"),
    ("centimeter", "millimeter"),
    ("century", "year"),
    ("day", "hour"),
    ("decimeter", "centimeter"),
    ("foot", "inch"),
    ("fortnight", "day"),
    ("gallon", "pint"),
    ("gallon", "quart"),
    ("gram", "milligram"),
    ("hour", "minute"),
    ("hour", "second"),
    ("kilogram", "gram"),
    ("kilometer", "meter"),
    ("kilovolt", "volt"),
    ("kilowatt", "watt"),
    ("liter", "centiliter"),
    ("liter", "milliliter"),
    ("megawatt", "kilowatt"),
    ("meter", "centimeter"),
    ("meter", "decimeter"),
    ("meter", "millimeter"),
    ("mile", "foot"),
    ("mile", "yard"),
    ("millennium", "century"),
    ("millennium", "year"),
    ("minute", "second"),
    ("pound", "ounce"),
    ("quart", "pint"),
    ("second", "millisecond"),
    ("stone", "pound"),
    ("tonne", "kilogram"),
    ("volt", "millivolt"),
    ("week", "day"),
    ("yard", "foot"),
    ("yard", "inch"),
)

# Any common year; February is left out because its length is not one number.
COMMON_YEAR = 2023
FEBRUARY = 2

_REGISTRY: UnitRegistry = UnitRegistry()  # type: ignore[type-arg,unused-ignore]
_ENGLISH = Locale("en")


def whole_ratio(large: str, small: str) -> int:
    """Return how many of the small unit make the large one.

    Raises:
        ValueError: the ratio is not a whole number.
    """
    ratio = float(_REGISTRY.Quantity(1, large).to(small).magnitude)
    if abs(ratio - round(ratio)) > 1e-9 * ratio:
        raise ValueError(f"one {large} is not a whole number of {small}: {ratio}")
    return round(ratio)


def unit_facts() -> Iterator[Fact]:
    """Yield how many of a smaller unit make a larger one."""
    for large, small in UNIT_PAIRS:
        slots = {
            "large": with_article(large),
            "smalls": plural(small),
            "count": str(whole_ratio(large, small)),
        }
        yield Fact("unit", f"{large}-{small}", slots)


def month_facts() -> Iterator[Fact]:
    """Yield number, neighbours and length of each month."""
    names = _ENGLISH.months["format"]["wide"]
    for number in range(1, 13):
        month = str(names[number])
        place = {"month": month, "place": ordinal(number)}
        yield Fact("month_place", month, place)
        yield Fact("month_at_place", month, place)
        yield Fact("next_month", month, {"month": month, "other": names[number % 12 + 1]})
        yield Fact("previous_month", month, {"month": month, "other": names[(number - 2) % 12 + 1]})
        if number != FEBRUARY:
            days = str(calendar.monthrange(COMMON_YEAR, number)[1])
            yield Fact("month_days", month, {"month": month, "days": days})


def day_facts() -> Iterator[Fact]:
    """Yield the neighbours of each day of the week."""
    names = _ENGLISH.days["format"]["wide"]
    for number in range(7):
        day = str(names[number])
        yield Fact("next_day", day, {"day": day, "other": names[(number + 1) % 7]})
        yield Fact("previous_day", day, {"day": day, "other": names[(number - 1) % 7]})


def measure_facts() -> Iterator[Fact]:
    """Yield every fact of this subject in a fixed order."""
    yield from unit_facts()
    yield from month_facts()
    yield from day_facts()
