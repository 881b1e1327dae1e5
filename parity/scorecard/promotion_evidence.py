"""The numbers that a verdict rests on.

Legend: M metrics, S training seeds, T tasks, G families, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from parity.scorecard.cycle import METRICS, Cycle, FloatArray
from parity.scorecard.promotion_metrics import RELATIVE, TIME, Paired, in_order, paired, values
from parity.scorecard.promotion_rule import Rule
from parity.scorecard.promotion_verdict import POOLED, Control, Family, Flips, Measured
from parity.scorecard.statistics.bounds import bca_bounds, family_weights, t_bounds, variance, widest
from parity.scorecard.statistics.pairs import discordant, flip_rate, holm, loss_by_family, mcnemar_against
from parity.scorecard.statistics.power import minimum_detectable
from parity.scorecard.statistics.sums import Sums, pooled

NAMES = (*METRICS, TIME)
Means = tuple[dict[str, float], dict[str, float]]


def measured(cycles: Sequence[Cycle], pairs: Sequence[Paired], rule: Rule) -> tuple[Measured, ...]:
    """Each metric in each cycle, and pooled."""
    families = len(pairs[0].families)
    weights_BG = family_weights(families, resamples=rule.bounds.resamples, seed=rule.bounds.resampling_seed)
    found: list[Measured] = []
    means = [_means(cycle, one) for cycle, one in zip(cycles, pairs, strict=True)]
    for cycle, one, mean in zip(cycles, pairs, means, strict=True):
        found += _scope(cycle.name, one.sums, mean, weights_BG, rule.bounds.cycle_alpha, rule)
    counts = [float(one.complete_ST.sum()) for one in pairs]
    overall = tuple(
        {name: float(np.average([mean[lane][name] for mean in means], weights=counts)) for name in NAMES} for lane in (0, 1)
    )  # fmt: skip
    found += _scope(POOLED, pooled([one.sums for one in pairs]), (overall[0], overall[1]), weights_BG, rule.bounds.pooled_alpha, rule)
    return tuple(found)


def _scope(scope: str, sums: Sums, means: Means, weights_BG: FloatArray, alpha: float, rule: Rule) -> list[Measured]:
    t, boot, spread = t_bounds(sums, alpha), bca_bounds(sums, weights_BG, alpha), variance(sums)
    both = widest(t, boot)
    found = []
    for number, metric in enumerate(NAMES):
        margin = rule.margins.of(metric) if metric in METRICS else None
        baseline, candidate = means[0][metric], means[1][metric]
        relative = metric in RELATIVE
        delta = (candidate - baseline) / baseline if relative else candidate - baseline
        error = float(np.sqrt(spread.total[number]))
        found.append(Measured(
            scope=scope, metric=metric, baseline=baseline, candidate=candidate, delta=delta, relative=relative,
            loss=float(sums.estimate[number]), lower=float(both.lower[number]), upper=float(both.upper[number]),
            bca_upper=float(boot.upper[number]), t_upper=float(t.upper[number]), alpha=alpha, margin=margin,
            passed=None if margin is None else bool(both.upper[number] < margin),
            minimum_detectable=minimum_detectable(error, spread.degrees, alpha=alpha, power=rule.bounds.power),
        ))  # fmt: skip
    return found


def _means(cycle: Cycle, pairs: Paired) -> Means:
    """Each lane's mean of each metric over the complete pairs."""
    lanes = []
    for lane in (cycle.baseline, cycle.candidate):
        order = in_order(lane)
        lanes.append({name: float(value[order][pairs.complete_ST].mean()) for name, value in values(cycle, lane.scores).items()})
    return lanes[0], lanes[1]


def flips(cycle: Cycle, pairs: Paired, control: Paired) -> Flips:
    """How often the lanes' answers differ, and McNemar's test on the smallest training seed."""
    lost, won = discordant(pairs.left[0], pairs.right[0])
    return Flips(
        scope=cycle.name, flip_rate=flip_rate(pairs.left, pairs.right, pairs.complete_ST), lost=lost, won=won,
        control_flip_rate=flip_rate(control.left, control.right, control.complete_ST), mcnemar=mcnemar_against(lost, won),
    )  # fmt: skip


def families(pairs: Sequence[Paired]) -> tuple[Family, ...]:
    """The loss of each family over all cycles, the largest first."""
    loss = np.concatenate([one.loss_ST for one in pairs])
    complete = np.concatenate([one.complete_ST for one in pairs])
    names = pairs[0].families
    means, p = loss_by_family(loss, complete, pairs[0].family_T, len(names))
    found = [
        Family(family=name, loss=float(mean), p=float(adjusted)) for name, mean, adjusted in zip(names, means, holm(p), strict=True)
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda one: (-one.loss, one.family)))


def control(controls: Sequence[Paired]) -> tuple[Control, ...]:
    """A/A over all cycles: each metric of the rule, its difference and the two-sided p that there is none."""
    sums = pooled([one.sums for one in controls])
    p = holm(two_sided(sums)[: len(METRICS)])
    return tuple(
        Control(metric=metric, loss=float(sums.estimate[number]), p=float(p[number])) for number, metric in enumerate(METRICS)
    )  # fmt: skip


def two_sided(sums: Sums) -> FloatArray:
    """[...]: p that the true ratio is 0, by t with two-way variance; 1 where the estimate is exactly 0."""
    found = variance(sums)
    error = np.sqrt(found.total)
    t = np.divide(np.abs(sums.estimate), error, out=np.where(sums.estimate == 0, 0.0, np.inf), where=error > 0)
    return np.asarray(2.0 * special.stdtr(found.degrees, -t))


def controls(cycles: Sequence[Cycle]) -> tuple[Paired, ...]:
    """The control of each cycle against its baseline; the cycles have one each."""
    return tuple(paired(cycle, cycle.baseline, cycle.control) for cycle in cycles if cycle.control is not None)
