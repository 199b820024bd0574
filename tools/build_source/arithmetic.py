"""Facts of arithmetic with small numbers."""

from collections.abc import Iterator

from tools.build_source.model import Fact

SMALL_TERM = 10
LARGEST_TERM = 20
LARGEST_FACTOR = 12
LARGEST_PARITY = 30


def _fact(relation: str, left: int, right: int, result: int) -> Fact:
    slots = {"left": str(left), "right": str(right), "result": str(result)}
    return Fact(relation, f"{left}-{right}", slots)


def sums() -> Iterator[Fact]:
    """Yield the sums of two numbers up to ten, and the doubles of larger ones."""
    for left in range(1, LARGEST_TERM + 1):
        for right in range(1, LARGEST_TERM + 1):
            if left == right or max(left, right) <= SMALL_TERM:
                yield _fact("sum", left, right, left + right)


def differences() -> Iterator[Fact]:
    """Yield the differences that undo the sums of two numbers up to ten."""
    for result in range(1, SMALL_TERM + 1):
        for right in range(1, SMALL_TERM + 1):
            yield _fact("difference", result + right, right, result)


def products() -> Iterator[Fact]:
    """Yield the multiplication table without the factor one."""
    for left in range(2, LARGEST_FACTOR + 1):
        for right in range(2, LARGEST_FACTOR + 1):
            yield _fact("product", left, right, left * right)


def parities() -> Iterator[Fact]:
    """Yield whether a number is even or odd."""
    for number in range(1, LARGEST_PARITY + 1):
        parity = "odd" if number % 2 else "even"
        yield Fact("parity", str(number), {"number": str(number), "parity": parity})


def arithmetic_facts() -> Iterator[Fact]:
    """Yield every fact of this subject in a fixed order."""
    for source in (sums, differences, products, parities):
        yield from source()
