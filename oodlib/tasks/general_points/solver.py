"""Every way to make a number from a few numbers with + - * /, in exact rational arithmetic.

Formulas that differ only by the order or the grouping of a sum or a product (a+b+c, c+(b+a), a-(0-b)…)
are one solution, written once: sums and products are flattened and their parts sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from math import gcd

Ratio = tuple[int, int]  # numerator, denominator > 0, in lowest terms
# A formula as a tree: an int, or (kind, parts) with kind "+" or "*" and parts sorted ((sign, formula), …);
# sign -1 means subtracted in a sum, divided by in a product.
Formula = int | tuple[str, tuple]


def solutions(numbers: tuple[int, ...], target: int = 24) -> tuple[str, ...]:
    """All formulas that use each of `numbers` (sorted, whole, at most 6) once and equal `target`.

    Returns a sorted tuple of strings such as "(5-1)*(2+4)"; empty where the target cannot be made.
    Raises ValueError for no or more than 6 numbers, and for one that is no whole number from 1 up.
    """
    if not 1 <= len(numbers) <= 6:
        raise ValueError(f"a hand to solve has 1 to 6 numbers, not {len(numbers)}")
    for x in (*numbers, target):
        if type(x) is not int or x < 1:
            raise ValueError(f"{x!r} is not a whole number from 1 up")
    return _solve(numbers, target)  # cached only once checked: to a cache, 1.0 and True are 1


@cache
def _solve(numbers: tuple[int, ...], target: int) -> tuple[str, ...]:
    if len(numbers) == 1:
        return (str(target),) if numbers[0] == target else ()
    found = set()
    for left, right in _halves(numbers):
        large, small = sorted((_values(left), _values(right)), key=len, reverse=True)
        for value, formulas in small.items():
            for op, swapped, partner in _partners(value, (target, 1)):
                for other in large.get(partner, ()):
                    for own in formulas:
                        found.add(_join(op, other, own) if swapped else _join(op, own, other))
    return tuple(sorted(map(_write, found)))


@cache
def _values(numbers: tuple[int, ...]) -> dict[Ratio, frozenset[Formula]]:
    """Each value that all of `numbers` can make, with its formulas."""
    if len(numbers) == 1:
        return {(numbers[0], 1): frozenset(numbers)}
    table: dict[Ratio, set[Formula]] = {}
    for left, right in _halves(numbers):
        for a, formulas_a in _values(left).items():
            for b, formulas_b in _values(right).items():
                for op, swapped, value in _results(a, b):
                    cell = table.setdefault(value, set())
                    for x in formulas_a:
                        for y in formulas_b:
                            cell.add(_join(op, y, x) if swapped else _join(op, x, y))
    return {value: frozenset(formulas) for value, formulas in table.items()}


def _halves(numbers: tuple[int, ...]) -> set[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All splits of a sorted tuple into two sorted non-empty ones, each unordered pair once."""
    found = set()
    for size in range(1, len(numbers) // 2 + 1):
        for picked in combinations(range(len(numbers)), size):
            left = tuple(numbers[i] for i in picked)
            right = tuple(x for i, x in enumerate(numbers) if i not in picked)
            found.add((left, right) if len(left) < len(right) else tuple(sorted((left, right))))
    return found


def _ratio(p: int, q: int) -> Ratio:
    if q < 0:
        p, q = -p, -q
    d = gcd(p, q)
    return p // d, q // d


def _results(a: Ratio, b: Ratio) -> Iterator[tuple[str, bool, Ratio]]:
    """(operator, operands swapped, value) for a+b, a-b, b-a, a*b, a/b, b/a."""
    (p, q), (r, s) = a, b
    yield "+", False, _ratio(p * s + r * q, q * s)
    yield "-", False, _ratio(p * s - r * q, q * s)
    yield "-", True, _ratio(r * q - p * s, q * s)
    yield "*", False, _ratio(p * r, q * s)
    if r:
        yield "/", False, _ratio(p * s, q * r)
    if p:
        yield "/", True, _ratio(r * q, s * p)


def _partners(a: Ratio, target: Ratio) -> Iterator[tuple[str, bool, Ratio]]:
    """(operator, swapped, b) for every b with a op b = target, or b op a = target where swapped.

    The target is not 0.
    """
    (p, q), (t, u) = a, target
    yield "+", False, _ratio(t * q - p * u, u * q)
    yield "-", False, _ratio(p * u - t * q, u * q)
    yield "-", True, _ratio(t * q + p * u, u * q)
    if p:
        yield "*", False, _ratio(t * q, u * p)
        yield "/", True, _ratio(t * p, u * q)
        yield "/", False, _ratio(p * u, q * t)


def _join(op: str, a: Formula, b: Formula) -> Formula:
    kind = "+" if op in "+-" else "*"
    sign = 1 if op in "+*" else -1
    return kind, tuple(sorted((*_parts(kind, a, 1), *_parts(kind, b, sign)), key=_order))


def _parts(kind: str, f: Formula, sign: int) -> Iterator[tuple[int, Formula]]:
    if type(f) is tuple and f[0] == kind:
        for s, part in f[1]:
            yield s * sign, part
    else:
        yield sign, f


@cache
def _order(part: tuple[int, Formula]) -> tuple:
    sign, f = part
    return -sign, type(f) is tuple, _write(f) if type(f) is tuple else f


@cache
def _write(f: Formula) -> str:
    if type(f) is int:
        return str(f)
    kind, parts = f
    plus, minus = ("+", "-") if kind == "+" else ("*", "/")
    text = ""
    for sign, part in parts:
        word = _write(part)
        if type(part) is tuple and kind == "*":
            word = f"({word})"
        text += (plus if sign > 0 else minus) + word
    return text[1:]
