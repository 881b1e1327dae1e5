"""The one confidence of a run.

Hard bounds hold for all data and need none. Statistical comparisons may reject a correct stack by
chance; over a whole run the probability of even one such false alarm is at most FALSE_ALARM, divided
over the run's statistical comparisons (Bonferroni: no independence between them is assumed).
"""

from __future__ import annotations

from scipy.special import betaincinv

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


CONFIDENCE = 0.95
"""Of the statement that a rate of false alarms lies below its Clopper-Pearson bound."""


def clopper_pearson(alarms: int, examples: int) -> float:
    """The upper bound on the probability of an alarm, after `alarms` in so many independent examples (Clopper & Pearson 1934).

    The p at which so few alarms, or fewer, have the probability 1 - CONFIDENCE: of no alarm in n examples 1 - (1 - CONFIDENCE)^(1 / n).

    Raises:
        ValueError: no examples, or more alarms than those.
    """
    if not 0 <= alarms <= examples or examples == 0:
        raise ValueError(f"{alarms} alarms in {examples} examples; allowed: at least 1 example, and no more alarms than examples")
    return 1.0 if alarms == examples else float(betaincinv(alarms + 1, examples - alarms, CONFIDENCE))
