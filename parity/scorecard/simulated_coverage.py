"""How often a bound holds: upper bounds of the loss in semantics, against the truth that the cycles were drawn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.scorecard.cycle import METRICS
from parity.scorecard.promotion_rule import Rule
from parity.scorecard.simulated import World, draw
from parity.scorecard.simulated_rule import CHUNK, cycle_sums
from parity.scorecard.statistics.bounds import bca_bounds, family_weights, t_bounds, widest
from parity.scorecard.statistics.sums import Sums, pooled

_SEMANTICS = METRICS.index("semantics")


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The share of draws in which the upper bound is at least the true loss: of t, of BCa, and of the wider of both."""

    t: float
    bca: float
    both: float


def coverage(world: World, rule: Rule, *, draws: int, seed: int, resamples: int) -> tuple[Coverage, Coverage]:
    """(of one cycle, at 1 - cycle_alpha; of all cycles pooled, at 1 - pooled_alpha)."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    weights_BG = family_weights(world.families, resamples=resamples, seed=rule.bounds.resampling_seed)
    held = []
    for start in range(0, draws, CHUNK):
        baseline, candidate, _ = draw(world, min(CHUNK, draws - start), generator)
        cycles = [_only_semantics(one) for one in cycle_sums(world, baseline, candidate)]
        scopes = ((cycles[0], rule.bounds.cycle_alpha), (pooled(cycles), rule.bounds.pooled_alpha))
        for_scopes = []
        for sums, alpha in scopes:
            t, bca = t_bounds(sums, alpha), bca_bounds(sums, weights_BG, alpha)
            for_scopes.append([one.upper >= world.loss for one in (t, bca, widest(t, bca))])
        held.append(for_scopes)
    shares = np.concatenate(held, -1).mean(-1)
    first, second = (Coverage(t=float(t), bca=float(bca), both=float(both)) for t, bca, both in shares)
    return first, second


def _only_semantics(sums: Sums) -> Sums:
    return Sums(sums.loss_SG[:, _SEMANTICS], sums.scale_SG[:, _SEMANTICS])
