"""A cycle's paired losses, metric by metric, as the statistics take them.

Legend: M metrics, S training seeds, T tasks, G families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from parity.scorecard.cycle import METRICS, BoolArray, Cycle, FloatArray, Lane, Scores
from parity.scorecard.statistics.sums import Sums, family_numbers, paired_sums, restricted

TIME = "time_to_first_valid"
"""Reported beside the metrics of the rule, and relative as tokens are; it decides nothing, since both lanes are scored on one runtime."""

RELATIVE = ("tokens", TIME)
_GAINS = ("syntax", "semantics")
"""More is better."""


@dataclass(frozen=True, eq=False)
class Paired:
    """Two lanes of a cycle, their training seeds in ascending order.

    Attributes:
        sums: [M, S, G], the metrics of METRICS and then TIME.
        complete_ST: pairs that both lanes ran to the end.
        left, right: semantics of the two lanes, [S, T].
    """

    sums: Sums
    complete_ST: BoolArray
    left: BoolArray
    right: BoolArray
    family_T: npt.NDArray[np.intp]
    families: tuple[str, ...]

    @property
    def loss_ST(self) -> FloatArray:
        """The loss in semantics of each pair: 1, 0 or -1."""
        return self.left.astype(np.float64) - self.right


def values(cycle: Cycle, scores: Scores) -> dict[str, FloatArray]:
    """Each metric of a lane, [S, T]."""
    made: dict[str, Callable[[], FloatArray]] = {
        "syntax": lambda: scores.syntax.astype(np.float64),
        "semantics": lambda: scores.semantics.astype(np.float64),
        "stall_rate": lambda: scores.stalled.astype(np.float64),
        "attempts": lambda: restricted(scores.valid, scores.attempts, cycle.max_attempts),
        "tokens": lambda: scores.tokens,
        TIME: lambda: restricted(scores.valid, scores.milliseconds, cycle.max_milliseconds),
    }
    return {metric: made[metric]() for metric in (*METRICS, TIME)}


def in_order(lane: Lane) -> npt.NDArray[np.intp]:
    """The order that sorts a lane's training runs by seed: the first is the pre-registered one of McNemar's test."""
    return np.argsort(np.array([one.seed for one in lane.trained], dtype=np.int64), kind="stable")


def paired(cycle: Cycle, baseline: Lane, other: Lane) -> Paired:
    """Pairs of two lanes, which have the same training seeds."""
    families, family_T = family_numbers(cycle.families)
    left, right = in_order(baseline), in_order(other)
    complete = baseline.scores.complete[left] & other.scores.complete[right]
    of_left, of_right = values(cycle, baseline.scores), values(cycle, other.scores)
    parts = []
    for metric in (*METRICS, TIME):
        difference = of_right[metric][right] - of_left[metric][left]
        loss = -difference if metric in _GAINS else difference
        scale = of_left[metric][left] if metric in RELATIVE else np.ones_like(loss)
        parts.append(paired_sums(loss, scale, complete, family_T, len(families)))
    sums = Sums(np.stack([part.loss_SG for part in parts]), np.stack([part.scale_SG for part in parts]))
    return Paired(sums, complete, baseline.scores.semantics[left] & complete, other.scores.semantics[right] & complete, family_T, families)
