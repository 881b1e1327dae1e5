"""How large the rounding errors of one correct operation are, as a root mean square in units of u, the unit roundoff.

A rounding to nearest errs by at most u times its result, and evenly so: its root mean square is u / sqrt(3) of the result at most.
Each size is that of the worst legal order of summation, one term after the other. docs/theory.md, section Graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

Size = Callable[[], np.ndarray]
"""The size of an operation's error, element by element, broadcast to its result; computed only where it is asked for."""


class Noise(Protocol):
    """What the oracle shows every operation's result to: it may add an error of the given size to it, or just look."""

    ulp: float
    """The worst declared error of the elementary functions that the graph takes, in ulp."""

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        """The value that the rest of the graph sees. `site` names the operation, once in a graph; arrays have a leading axis of runs."""


class Exact:
    """No error at all."""

    ulp = 0.0

    def __call__(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        """The value itself."""
        return value


def none() -> np.ndarray:
    """The size of an operation that does not round: a copy, a table look-up, a maximum."""
    return np.zeros(())


def rounded(*results: np.ndarray) -> np.ndarray:
    """One rounding of each result: sqrt(sum of result^2 / 3)."""
    return together(*(result / np.sqrt(3) for result in results))


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
