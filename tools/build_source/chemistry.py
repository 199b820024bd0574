"""Facts about the chemical elements."""

from collections.abc import Iterator

from molmass.elements import ELEMENTS, Element

from tools.build_source.model import Fact

# Elements most readers have heard of; a short list leaves room for many phrasings of each.
WELL_KNOWN = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Ti Cr Mn Fe Co Ni Cu Zn As Se Br Kr Pd "
    "Ag Sn I Xe Cs Ba W Pt Au Hg Pb Rn Ra U Pu"
)

# Only the families whose members chemists agree on, by the series number of the package.
FAMILIES = {
    2: "a noble gas",
    3: "an alkali metal",
    4: "an alkaline earth metal",
    6: "a halogen",
    8: "a transition metal",
}

# Zinc, cadmium and mercury are often not counted as transition metals.
UNSETTLED_GROUP = 12


def well_known_elements() -> list[Element]:
    """Return the listed elements by atomic number."""
    known = [element for element in ELEMENTS if element.symbol in WELL_KNOWN.split()]
    return sorted(known, key=lambda element: int(element.number))


def chemistry_facts() -> Iterator[Fact]:
    """Yield symbol, name, number and family of each listed element."""
    for element in well_known_elements():
        slots = {
            "element": element.name.lower(),
            "symbol": element.symbol,
            "number": str(element.number),
        }
        for relation in ("symbol", "symbol_reverse", "atomic_number"):
            yield Fact(relation, element.symbol, slots)
        family = FAMILIES.get(element.series)
        if family and element.group != UNSETTLED_GROUP:
            yield Fact("family", element.symbol, {"element": slots["element"], "family": family})
