"""The one confidence of a run.

Hard bounds hold for all data and need none. Statistical comparisons may reject a correct stack by
chance; over a whole run the probability of even one such false alarm is at most FALSE_ALARM, divided
over the run's statistical comparisons (Bonferroni: no independence between them is assumed).
"""

from __future__ import annotations

FALSE_ALARM = 1e-6
"""Probability that a run whose stacks are right fails: one in a million runs, less than one in a
century of a gate that runs twenty times a day."""


def per_comparison(comparisons: int) -> float:
    """The false-alarm probability that one of a run's statistical comparisons may spend.

    Raises:
        ValueError: comparisons is not positive.
    """
    if comparisons < 1:
        raise ValueError(f"a run has {comparisons} statistical comparisons; it must have at least 1 to divide the confidence over")
    return FALSE_ALARM / comparisons
