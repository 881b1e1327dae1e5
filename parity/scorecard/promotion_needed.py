"""What a HOLD lacks: how many tasks, or training seeds, would decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from parity.scorecard.promotion_evidence import NAMES
from parity.scorecard.promotion_rule import Rule
from parity.scorecard.promotion_verdict import POOLED, Measured
from parity.scorecard.statistics.bounds import Variance, variance
from parity.scorecard.statistics.power import minimum_detectable, tasks_that_decide
from parity.scorecard.statistics.sums import Sums

_MOST_SEEDS = 100
_MOST_TASKS = 1_000_000
_SEEDS_DIFFER = 0.05


@dataclass(frozen=True, kw_only=True)
class Needed:
    """tasks: about so many would decide. seeds: where no number of tasks would, so many a cycle; None where those wouldn't either."""

    tasks: int | None
    seeds: int | None


def needed(open_: Sequence[Measured], sums: Sequence[tuple[str, Sums]], *, tasks: int, seeds: int, rule: Rule) -> Needed:
    """What would bring every open metric to one side of its margin, should loss and spread stay as they are.

    Where the estimate is below the margin that's the bound passing it; where it's over, the pooled evidence showing the loss.

    Args:
        open_: metrics that did not pass.
        sums: by scope.
        tasks, seeds: that there are; seeds in each cycle.
    """
    by_scope = {scope: variance(one) for scope, one in sums}
    of_tasks = [_tasks(one, by_scope[one.scope], tasks, rule) for one in open_ if _asked(one)]
    found = [count for count in of_tasks if count is not None]
    if len(found) == len(of_tasks) and found:
        return Needed(tasks=max(found), seeds=None)
    of_seeds = [_seeds(one, by_scope[one.scope], seeds, rule) for one in open_ if _asked(one)]
    more = [count for count in of_seeds if count is not None]
    return Needed(tasks=None, seeds=max(more) if len(more) == len(of_seeds) and more else None)


def _asked(one: Measured) -> bool:
    """A loss over the margin is shown by the pooled evidence alone."""
    return one.margin is not None and (one.loss < one.margin or one.scope == POOLED)


def _room(one: Measured) -> float:
    assert one.margin is not None, "only metrics of the rule are open"
    return abs(one.margin - one.loss)


def _tasks(one: Measured, found: Variance, tasks: int, rule: Rule) -> int | None:
    """Training seeds have a part of their own only where they're seen to differ; 3 of them make a poor guess of it."""
    number = NAMES.index(one.metric)
    of_seeds = float(found.seeds[number]) if found.seeds_p[number] < _SEEDS_DIFFER else 0.0
    count = tasks_that_decide(
        tasks, room=_room(one), of_tasks=float(found.total[number]) - of_seeds, of_seeds=of_seeds, degrees=found.degrees,
        alpha=one.alpha, power=rule.bounds.power,
    )  # fmt: skip
    return count if count is not None and count <= _MOST_TASKS else None


def _seeds(one: Measured, found: Variance, seeds: int, rule: Rule) -> int | None:
    """The variance falls as 1 / seeds, and its degrees of freedom rise with them (families are more than seeds)."""
    total = float(found.total[NAMES.index(one.metric)])
    in_scope = found.degrees + 1
    for count in range(seeds + 1, _MOST_SEEDS + 1):
        error = float(np.sqrt(total * seeds / count))
        degrees = in_scope * count // seeds - 1
        if minimum_detectable(error, degrees, alpha=one.alpha, power=rule.bounds.power) <= _room(one):
            return count
    return None
