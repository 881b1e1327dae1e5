"""What a suite can tell: the smallest loss that it detects, and how many tasks would decide."""

from __future__ import annotations

import math

from scipy import special


def minimum_detectable(error: float, degrees: int, *, alpha: float, power: float) -> float:
    """(t(1 - alpha) + t(power)) x standard error: the true loss that a one-sided test at alpha finds with that power (Bloom 1995)."""
    return float((special.stdtrit(degrees, 1.0 - alpha) + special.stdtrit(degrees, power)) * error)


def tasks_that_decide(
    tasks: int, *, room: float, of_tasks: float, of_seeds: float, degrees: int, alpha: float, power: float
) -> int | None:  # fmt: skip
    """How many tasks would bring the bound within `room` of the estimate with that power; None where no number would.

    Var(n) = of_seeds + of_tasks x tasks / n; solved for (t(1 - alpha) + t(power)) sqrt(Var(n)) <= room.

    Args:
        room: how far the estimate is from the margin.
        of_tasks, of_seeds: the parts of the estimate's variance at `tasks` tasks.
    """
    allowed = (room / minimum_detectable(1.0, degrees, alpha=alpha, power=power)) ** 2
    if allowed <= of_seeds:
        return None
    return max(tasks, math.ceil(of_tasks * tasks / (allowed - of_seeds)))
