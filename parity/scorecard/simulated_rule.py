"""The rule, applied to many drawn promotions at once.

Legend: R draws, C cycles, S training seeds, T tasks, G families, M metrics.

It's the rule of promotion.py but for validity's counts, which the drawn cycles all satisfy; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from parity.scorecard.cycle import METRICS
from parity.scorecard.promotion_evidence import two_sided
from parity.scorecard.promotion_rule import Rule
from parity.scorecard.simulated import Drawn, World, draw
from parity.scorecard.statistics.bounds import Bounds, bca_bounds, family_weights, t_bounds, widest
from parity.scorecard.statistics.sums import BoolArray, FloatArray, Sums, by_family, pooled

CHUNK = 25
"""Draws at once: 25 x 6 x 800 numbers a metric stay in the cache."""


@dataclass(frozen=True, eq=False)
class Decisions:
    """What came of each draw, [R] each, but `inferior`: [R, M], metrics that are not shown to be non-inferior."""

    promoted: BoolArray
    rejected: BoolArray
    control_failed: BoolArray
    mcnemar: BoolArray
    family: BoolArray
    inferior: BoolArray


def decide(world: World, rule: Rule, *, draws: int, seed: int, resamples: int) -> Decisions:
    """Draws promotions and judges them; the same for the same seed."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    weights_BG = family_weights(world.families, resamples=resamples, seed=rule.bounds.resampling_seed)
    parts = []
    for start in range(0, draws, CHUNK):
        lanes = draw(world, min(CHUNK, draws - start), generator)
        parts.append(judge(world, rule, lanes, weights_BG))
    names = Decisions.__dataclass_fields__
    return Decisions(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def judge(world: World, rule: Rule, lanes: tuple[Drawn, Drawn, Drawn], weights_BG: FloatArray) -> Decisions:
    """The rule on drawn lanes (baseline, candidate, control)."""
    baseline, candidate, control = lanes
    cycles = cycle_sums(world, baseline, candidate)
    margins = np.array([rule.margins.of(metric) for metric in METRICS])
    inferior = np.zeros(cycles[0].estimate.shape, dtype=bool)
    for sums in cycles:
        inferior |= ~(_bounds(sums, weights_BG, rule.bounds.cycle_alpha).upper < margins)
    of_all = _bounds(pooled(cycles), weights_BG, rule.bounds.pooled_alpha)
    inferior |= ~(of_all.upper < margins)
    worse = (of_all.lower > margins).any(-1)
    mcnemar = _mcnemar(world, rule, baseline, candidate)
    family = _family(world, rule, baseline, candidate)
    failed = two_sided(pooled(cycle_sums(world, baseline, control))).min(-1) * len(METRICS) < rule.validity.control
    rejected = ~failed & (mcnemar | family | worse)
    return Decisions(~failed & ~rejected & ~inferior.any(-1), rejected, failed, mcnemar, family, inferior)


def cycle_sums(world: World, baseline: Drawn, other: Drawn) -> list[Sums]:
    """The sums of each cycle, [R, M, S, G]."""
    losses = [
        baseline.syntax.astype(np.float64) - other.syntax,
        baseline.semantics.astype(np.float64) - other.semantics,
        other.stalled.astype(np.float64) - baseline.stalled,
        other.attempts - baseline.attempts,
        other.tokens - baseline.tokens,
    ]
    families = world.families
    loss = np.stack([by_family(values, world.family_T, families) for values in losses], 1)
    scale = np.empty_like(loss)
    scale[:, :-1] = np.bincount(world.family_T, minlength=families)
    scale[:, -1] = by_family(baseline.tokens.astype(np.float64), world.family_T, families)
    return [Sums(loss[:, :, part], scale[:, :, part]) for part in _cycles(world)]


def _cycles(world: World) -> list[slice]:
    return [slice(number * world.seeds, (number + 1) * world.seeds) for number in range(world.cycles)]


def _bounds(sums: Sums, weights_BG: FloatArray, alpha: float) -> Bounds:
    return widest(t_bounds(sums, alpha), bca_bounds(sums, weights_BG, alpha))


def _mcnemar(world: World, rule: Rule, baseline: Drawn, candidate: Drawn) -> BoolArray:
    first = [part.start for part in _cycles(world)]
    lost = (baseline.semantics & ~candidate.semantics)[:, first].sum(-1)
    won = (candidate.semantics & ~baseline.semantics)[:, first].sum(-1)
    p = np.where(lost > 0, special.bdtrc(np.maximum(lost, 1) - 1.0, lost + won, 0.5), 1.0)
    return np.asarray((p < rule.veto.mcnemar).any(-1))


def _family(world: World, rule: Rule, baseline: Drawn, candidate: Drawn) -> BoolArray:
    """Some family's mean loss is over the limit, and significant by Holm: the smallest p of those over it, at its rank."""
    loss_RT = (baseline.semantics.astype(np.float64) - candidate.semantics).mean(1)
    size_G = np.bincount(world.family_T, minlength=world.families).astype(np.float64)
    mean = by_family(loss_RT, world.family_T, world.families) / size_G
    squares = by_family(loss_RT**2, world.family_T, world.families) / size_G - mean**2
    error = np.sqrt(np.maximum(squares, 0.0) / (size_G - 1.0))
    t = np.divide(mean, error, out=np.where(mean > 0, np.inf, -np.inf), where=error > 0)
    p = special.stdtr(size_G - 1.0, -t)
    order = np.argsort(p, -1, kind="stable")
    stepped = np.maximum.accumulate(np.take_along_axis(p, order, -1) * np.arange(world.families, 0, -1), -1)
    over = np.take_along_axis(mean, order, -1) > rule.veto.family_loss
    return np.asarray((over & (stepped < rule.veto.family_alpha)).any(-1))
