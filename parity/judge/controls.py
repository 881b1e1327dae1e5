"""Negative controls: a comparison is trusted only if it can fail.

Each one turns the observed tensor into one that is surely wrong, and the comparison must reject it:

    rolled       every element in its neighbour's place
    negated      every sign flipped
    shuffled     the same elements in another order (the mean is kept)
    just above   one element moved just past its bound

A control that happens to give a right answer (a constant tensor rolled) says nothing and is not applied. That is
decided without the comparison under test: a candidate is wrong only where it differs from the observed tensor by over
twice the limit, so that a comparison that accepts both contradicts the triangle inequality.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 2**16
"""Rolled, negated and shuffled change at most this many leading elements: enough to be wrong, and cheap on a real head."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How many controls were applied and caught, and which were missed."""

    applied: int
    caught: int
    missed: tuple[str, ...]

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(applied=self.applied + other.applied, caught=self.caught + other.caught, missed=self.missed + other.missed)


NONE = Outcome(applied=0, caught=0, missed=())


def run(
    passes: Callable[[np.ndarray], bool],
    observed: np.ndarray,
    *,
    surely_wrong: Callable[[np.ndarray], bool],
    just_above: np.ndarray,
) -> Outcome:
    """Applies the controls to a comparison that passed.

    Args:
        passes: the comparison under test.
        surely_wrong: True where a candidate lies so far from `observed` that both can't be right.
        just_above: the least wrong tensor.
    """
    if not passes(observed):
        return NONE
    outcomes = {name: passes(candidate) for name, candidate in _rearranged(observed) if surely_wrong(candidate)}
    outcomes["just above"] = passes(just_above)
    missed = tuple(name for name, passed in outcomes.items() if passed)
    return Outcome(applied=len(outcomes), caught=len(outcomes) - len(missed), missed=missed)


def _rearranged(observed: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Wrong tensors by name. One buffer serves them all, so each is good only until the next one is asked for."""
    candidate = observed.copy()
    window = candidate.reshape(-1)[:WINDOW]
    head = window.copy()
    yield "rolled", _put(window, np.roll(head, 1), candidate)
    yield "negated", _put(window, head ^ head.dtype.type(1) if head.dtype.kind in "biu" else -head, candidate)
    yield "shuffled", _put(window, np.random.default_rng(head.size).permutation(head), candidate)


def _put(window: np.ndarray, values: np.ndarray, candidate: np.ndarray) -> np.ndarray:
    window[:] = values
    return candidate
