"""How large the rounding errors of one correct operation are, as a root mean square in units of u, the unit roundoff.

A rounding to nearest errs by at most u times its result, and evenly so: its root mean square is u / sqrt(3) of the result at most.
Each size is that of the worst legal order of summation, one term after the other. docs/theory.md, section Graphs.

In bfloat16 an operation computes in float32 inside and rounds what it hands on: its size has two parts, each in its own u (`Mixed`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """The size of an operation that stores what it hands on.

    alone:  where one dtype does it all, in units of its u
    inside: where the dtype that is stored is narrower than the one that accumulates: what the latter errs by, in units of its u
    stored: root mean square of the roundings to the stored dtype, in units of its u
    most:   the largest that these may sum to, to first order, in the same units
    after:  how many of them follow on each other at most, so that most u / (1 - after u) is a hard bound (Higham 2002, lemma 3.1)
    """

    alone: np.ndarray
    inside: np.ndarray
    stored: np.ndarray
    most: np.ndarray
    after: int


Size = Callable[[], np.ndarray | Mixed]
"""The size of an operation's error, element by element, broadcast to its result; computed only where it is asked for.

An array alone is of what is never stored in a narrower dtype.
"""


class Noise(Protocol):
    """What the oracle shows every operation's result to: it may add an error of the given size to it, or just look."""

    ulp: float
    """The worst declared error of the elementary functions that the graph takes, in ulp."""
    mixed: bool
    """Whether what is stored is narrower than what accumulates."""

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        """The value that the rest of the graph sees. `site` names the operation, once in a graph; arrays have a leading axis of runs."""


class Exact:
    """No error at all."""

    ulp = 0.0
    mixed = False

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        """The value itself."""
        return value


def none() -> np.ndarray:
    """The size of an operation that does not round: a copy, a table look-up, a maximum."""
    return np.zeros(())


def rounded(*results: np.ndarray) -> np.ndarray:
    """One rounding of each result: sqrt(sum of result^2 / 3)."""
    return together(*(result / np.sqrt(3) for result in results))


def each(*results: np.ndarray) -> Mixed:
    """An elementwise operation, each of whose results may be stored before the next one takes it."""
    size = rounded(*results)
    return Mixed(alone=size, inside=np.zeros(()), stored=size, most=sum_of(*results), after=len(results))


def once(inside: np.ndarray, result: np.ndarray) -> Mixed:
    """An operation that computes inside, and stores its result alone; `inside` has that last rounding too."""
    return Mixed(alone=inside, inside=inside, stored=rounded(result), most=np.abs(result), after=1)


def sum_of(*results: np.ndarray) -> np.ndarray:
    """The sum of absolute values."""
    total: np.ndarray = np.abs(results[0])
    for result in results[1:]:
        total = total + np.abs(result)
    return total


def before(result: np.ndarray) -> Mixed:
    """Of a result whose rounding was told where it happened: nothing more errs, and the hard bound is that of one rounding."""
    return Mixed(alone=np.zeros(()), inside=np.zeros(()), stored=np.zeros(()), most=np.abs(result), after=1)


def parts(size: np.ndarray | Mixed) -> Mixed:
    """A size in its parts."""
    return size if isinstance(size, Mixed) else Mixed(alone=size, inside=size, stored=np.zeros(()), most=np.zeros(()), after=0)


def combined(*sizes: np.ndarray | Mixed) -> Mixed:
    """Independent errors in one value, one after the other."""
    each_one = [parts(size) for size in sizes]
    return Mixed(
        alone=together(*(one.alone for one in each_one)), inside=together(*(one.inside for one in each_one)),
        stored=together(*(one.stored for one in each_one)), most=sum_of(*(one.most for one in each_one)),
        after=sum(one.after for one in each_one),
    )  # fmt: skip


def placed(size: np.ndarray | Mixed, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray | Mixed:
    """The size of a result whose elements go to other places."""
    if not isinstance(size, Mixed):
        return change(size)
    alone, inside, stored, most = (change(part) if part.ndim else part for part in (size.alone, size.inside, size.stored, size.most))
    return Mixed(alone=alone, inside=inside, stored=stored, most=most, after=size.after)


def together(*sizes: np.ndarray) -> np.ndarray:
    """Independent errors in one value: their variances add."""
    variance = np.square(sizes[0])
    for size in sizes[1:]:
        variance = variance + np.square(size)
    root: np.ndarray = np.sqrt(variance)
    return root


def summed(total: np.ndarray, squares: np.ndarray, terms: int | np.ndarray) -> np.ndarray:
    """The k - 1 additions of a sum of k terms, one after the other.

    With S their sum and Q the sum of their squares, the partial sums s_j in random order have, summed over j = 2 .. k,
    E s_j^2 = Q ((k+1)/2 - 1/k) + (S^2 - Q) (k+1)/3 (parity/judge/bounds.py, sums_root_mean_square). A single term is exact.
    """
    k = np.maximum(terms, 1)
    variance = squares * ((k + 1) / 2 - 1 / k) + (total * total - squares) * (k + 1) / 3
    root: np.ndarray = np.sqrt(np.where(k > 1, np.maximum(variance, 0.0), 0.0) / 3)
    return root


def products(total: np.ndarray, squares: np.ndarray, terms: int | np.ndarray) -> np.ndarray:
    """As `summed`, for k products that are rounded first: Q more."""
    return together(summed(total, squares, terms), np.sqrt(squares / 3))


def constant(value: float) -> np.ndarray:
    """A constant of the graph, cast once: exact where float32 holds it."""
    return np.zeros(()) if float(np.float32(value)) == value else rounded(np.asarray(value))
