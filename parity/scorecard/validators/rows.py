"""Are the rows of two queries the same?

Values compare as SQLite's `IS` does: NULL is NULL, 3 is 3.0, 3 is not '3', a text is not a blob. Where one of two numbers is a REAL,
they may differ by what legal orders of summation differ by: each of k roundings has relative error u = 2^-53, so two sums of numbers of
one sign agree to gamma_2k = 2 k u / (1 - 2 k u) of the larger (Higham 2002, 3.1). A sum of both signs that cancels may differ by more:
such queries are no good as references.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Value = None | int | float | str | bytes
Row = tuple[Value, ...]

UNIT_ROUNDOFF = 2.0**-53


def gamma(roundings: int) -> float:
    """gamma_2k of k roundings in each of two computations."""
    error = 2 * roundings * UNIT_ROUNDOFF
    return error / (1 - error)


def same_value(expected: Value, got: Value, relative: float) -> bool:
    """Two values, numbers to a relative bound where one of them is a REAL."""
    if isinstance(expected, int | float) and isinstance(got, int | float):
        if expected == got:  # exact, also between an integer and a float
            return True
        if (isinstance(expected, int) and isinstance(got, int)) or not (math.isfinite(expected) and math.isfinite(got)):
            return False
        return abs(expected - got) <= relative * max(abs(expected), abs(got))
    return type(expected) is type(got) and expected == got


def same_row(expected: Row, got: Row, relative: float) -> bool:
    """Two rows, value by value."""
    return len(expected) == len(got) and all(same_value(one, other, relative) for one, other in zip(expected, got, strict=True))


def same_rows(expected: Sequence[Row], got: Sequence[Row], *, ordered: bool, roundings: int) -> bool:
    """All rows: in their order, or as multisets (each row as often, in any order).

    Args:
        roundings: how often a value of each side may have been rounded.
    """
    if len(expected) != len(got):
        return False
    relative = gamma(roundings)
    if ordered:
        return all(same_row(one, other, relative) for one, other in zip(expected, got, strict=True))
    return Counter(expected) == Counter(got) or _matched(expected, got, relative)


def _matched(expected: Sequence[Row], got: Sequence[Row], relative: float) -> bool:
    """Is there a one-to-one pairing of same rows? To a bound `same` is not transitive, so sorting or counting would not do.

    Kuhn's algorithm: each expected row takes a row that is free, or one whose owner finds another (an augmenting path).
    """
    same = [[there for there, other in enumerate(got) if same_row(one, other, relative)] for one in expected]
    owner: dict[int, int] = {}
    return all(_augmented(start, same, owner) for start in range(len(expected)))


def _augmented(start: int, same: Sequence[Sequence[int]], owner: dict[int, int]) -> bool:
    """Pairs one more row, going breadth first. came_from: row of `got` -> the row of `expected` that reached it."""
    came_from: dict[int, int] = {}
    taken: dict[int, int] = {now: row for row, now in owner.items()}
    waiting = [start]
    for one in waiting:
        for row in same[one]:
            if row in came_from:
                continue
            came_from[row] = one
            if row in owner:
                waiting.append(owner[row])
                continue
            _pair(row, came_from, taken, owner)
            return True
    return False


def _pair(row: int, came_from: dict[int, int], taken: dict[int, int], owner: dict[int, int]) -> None:
    """Back along the path: each expected row takes the row that it reached, and gives up the one that it had."""
    while True:
        by = came_from[row]
        owner[row] = by
        if by not in taken:
            return
        row = taken[by]
