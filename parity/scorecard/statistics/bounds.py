"""Confidence bounds of a ratio of sums: a t-bound with two-way variance, and BCa over resampled families.

Legend: S training seeds, G families, B resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from parity.scorecard.statistics.sums import FloatArray, Sums

RESAMPLES = 10_000


@dataclass(frozen=True, eq=False)
class Bounds:
    """One-sided bounds of a loss, each [...]: with confidence 1 - alpha the loss is at most `upper`; likewise at least `lower`."""

    lower: FloatArray
    upper: FloatArray


@dataclass(frozen=True, eq=False)
class Variance:
    """Of an estimate, each [...].

    Attributes:
        total: what the t-bound takes.
        tasks: the part that more tasks make smaller.
        seeds: the part that only more training seeds make smaller.
        seeds_p: of the seeds differing no more than the cells do (F test of the two-way layout).
    """

    total: FloatArray
    tasks: FloatArray
    seeds: FloatArray
    seeds_p: FloatArray
    degrees: int


def variance(sums: Sums) -> Variance:
    """Two-way clustered variance: families and training seeds are both samples, and cross.

    V = V_family + V_seed - V_cell, at least each of the first two, with V_family = G / (G - 1) sum_g u_.g^2, V_seed = S / (S - 1)
    sum_s u_s.^2 and V_cell = S G sigma^2 of the interaction, which both of them hold. Degrees of freedom min(S, G) - 1: Cameron,
    Gelbach & Miller 2011, Robust inference with multiway clustering, sections 2.1 and 2.3.

    Raises:
        ValueError: fewer than two seeds or families.
    """
    u_SG = sums.residual_SG
    seeds, families = u_SG.shape[-2:]
    if min(seeds, families) < 2:
        raise ValueError(f"got {seeds} seeds and {families} families; a variance needs two of each")
    u_G, u_S = u_SG.sum(-2), u_SG.sum(-1)
    of_families = families / (families - 1) * (u_G**2).sum(-1)
    of_seeds = seeds / (seeds - 1) * (u_S**2).sum(-1)
    rest_SG = u_SG - u_G[..., None, :] / seeds - u_S[..., :, None] / families
    of_cells = seeds * families * (rest_SG**2).sum((-2, -1)) / ((seeds - 1) * (families - 1))
    total = np.maximum(np.maximum(of_families, of_seeds), of_families + of_seeds - of_cells)
    alone = np.maximum(of_seeds - of_cells, 0.0)
    ratio = np.divide(of_seeds, of_cells, out=np.where(of_seeds > 0, np.inf, 0.0), where=of_cells > 0)
    p = np.asarray(special.fdtrc(seeds - 1, (seeds - 1) * (families - 1), ratio))
    return Variance(total, total - np.minimum(alone, total), np.minimum(alone, total), p, min(seeds, families) - 1)


def t_bounds(sums: Sums, alpha: float) -> Bounds:
    """estimate -+ t(1 - alpha; min(S, G) - 1) sqrt(V)."""
    found = variance(sums)
    half = special.stdtrit(found.degrees, 1.0 - alpha) * np.sqrt(found.total)
    return Bounds(sums.estimate - half, sums.estimate + half)


def family_weights(families: int, *, resamples: int = RESAMPLES, seed: int) -> FloatArray:
    """[B, G]: how often each family is drawn in each resample, with replacement (multinomial); the same for the same seed."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    return generator.multinomial(families, np.full(families, 1.0 / families), size=resamples).astype(np.float64)


def resampled(sums: Sums, weights_BG: FloatArray) -> FloatArray:
    """[..., B]: the estimate in each resample of families; a family comes with all its tasks and seeds."""
    loss = sums.loss_SG.sum(-2) @ weights_BG.T
    return np.asarray(loss / (sums.scale_SG.sum(-2) @ weights_BG.T))


def jackknifed(sums: Sums) -> FloatArray:
    """[..., G]: the estimate without each family."""
    loss_G, scale_G = sums.loss_SG.sum(-2), sums.scale_SG.sum(-2)
    return np.asarray((loss_G.sum(-1, keepdims=True) - loss_G) / (scale_G.sum(-1, keepdims=True) - scale_G))


def bca_bounds(sums: Sums, weights_BG: FloatArray, alpha: float) -> Bounds:
    """Bias-corrected and accelerated bootstrap bounds, families resampled (Efron & Tibshirani 1993, 14.3)."""
    return bca(sums.estimate, resampled(sums, weights_BG), jackknifed(sums), alpha)


def bca(estimate: FloatArray, distribution_B: FloatArray, jackknife_G: FloatArray, alpha: float) -> Bounds:
    """The BCa bounds of an estimate from its bootstrap distribution and its jackknife.

    z0 = PHI^-1(share of resamples below the estimate, ties half); a = sum d^3 / (6 (sum d^2)^1.5), d = mean - jackknife;
    level of z = PHI(z0 + (z0 + z) / (1 - a (z0 + z))). Where z0 or a is undefined (no two resamples differ) both bounds are the estimate.
    """
    below = (distribution_B < estimate[..., None]).mean(-1) / 2 + (distribution_B <= estimate[..., None]).mean(-1) / 2
    z0 = special.ndtri(below)
    d = jackknife_G.mean(-1, keepdims=True) - jackknife_G
    squares = (d**2).sum(-1)
    a = np.divide((d**3).sum(-1), 6.0 * squares**1.5, out=np.zeros_like(squares), where=squares > 0)
    ordered = np.sort(distribution_B, -1)
    ends = []
    for z in (special.ndtri(alpha), special.ndtri(1.0 - alpha)):
        level = special.ndtr(z0 + (z0 + z) / (1.0 - a * (z0 + z)))
        ends.append(_quantile(ordered, np.where(np.isfinite(level), level, 0.5)))
    return Bounds(ends[0], ends[1])


def _quantile(ordered_B: FloatArray, level: FloatArray) -> FloatArray:
    """The linear quantile (Hyndman & Fan 1996, definition 7) of each row at a level of its own."""
    place = np.clip(level, 0.0, 1.0) * (ordered_B.shape[-1] - 1)
    low: npt.NDArray[np.intp] = np.floor(place).astype(np.intp)
    high = np.minimum(low + 1, ordered_B.shape[-1] - 1)
    at_low = np.take_along_axis(ordered_B, low[..., None], -1)[..., 0]
    at_high = np.take_along_axis(ordered_B, high[..., None], -1)[..., 0]
    return np.asarray(at_low + (place - low) * (at_high - at_low))


def widest(first: Bounds, second: Bounds) -> Bounds:
    """The cautious one of two: the lower lower bound, the upper upper one."""
    return Bounds(np.minimum(first.lower, second.lower), np.maximum(first.upper, second.upper))
