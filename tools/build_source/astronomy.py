"""Facts about planets, moons and stars, worked out from computed positions."""

from collections.abc import Iterator
from itertools import pairwise

import ephem  # type: ignore[import-untyped,unused-ignore]
import ephem.stars  # type: ignore[import-untyped,unused-ignore]

from tools.build_source.english import ordinal
from tools.build_source.model import Fact

# Any day gives the same answers; a fixed one keeps the build independent of the clock.
DAY = "2000/1/1"

OTHER_PLANETS = ("Mercury", "Venus", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")

MOONS = (
    "Ariel Callisto Deimos Dione Enceladus Europa Ganymede Hyperion Iapetus Io Mimas Miranda "
    "Oberon Phobos Rhea Tethys Titan Titania Umbriel"
)

STARS = (
    "Aldebaran Algol Altair Antares Arcturus Bellatrix Betelgeuse Canopus Capella Castor Deneb "
    "Mizar Polaris Pollux Procyon Regulus Rigel Sirius Spica Vega"
)


def planets_outward() -> list[str]:
    """Return the eight planets from the nearest to the Sun to the farthest."""
    distance = {"Earth": float(ephem.Sun(DAY).earth_distance)}
    for name in OTHER_PLANETS:
        distance[name] = float(getattr(ephem, name)(DAY).sun_distance)
    return sorted(distance, key=distance.__getitem__)


def planet_facts() -> Iterator[Fact]:
    """Yield the place of each planet and its neighbours."""
    order = planets_outward()
    for place, planet in enumerate(order, start=1):
        slots = {"planet": planet, "place": ordinal(place)}
        yield Fact("planet_place", planet, slots)
        yield Fact("planet_at_place", planet, slots)
    for inner, outer in pairwise(order):
        yield Fact("next_planet", inner, {"planet": inner, "other": outer})
        yield Fact("previous_planet", outer, {"planet": outer, "other": inner})


def moon_facts() -> Iterator[Fact]:
    """Yield the planet of each moon: the one it stands closest to in the sky."""
    planets = {name: getattr(ephem, name)(DAY) for name in OTHER_PLANETS}
    for name in MOONS.split():
        moon = getattr(ephem, name)(DAY)
        apart = {
            planet: float(ephem.separation((moon.ra, moon.dec), (body.ra, body.dec)))
            for planet, body in planets.items()
        }
        nearest = min(OTHER_PLANETS, key=apart.__getitem__)
        yield Fact("moon", name, {"moon": name, "planet": nearest})


def star_facts() -> Iterator[Fact]:
    """Yield the constellation of each listed star."""
    for name in STARS.split():
        constellation = ephem.constellation(ephem.star(name, DAY))[1]
        yield Fact("star", name, {"star": name, "constellation": str(constellation)})


def astronomy_facts() -> Iterator[Fact]:
    """Yield every fact of this subject in a fixed order."""
    yield from planet_facts()
    yield from moon_facts()
    yield from star_facts()
