"""Pairs of yes and no: exact McNemar, flips, families, Holm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special

from parity.scorecard.statistics.sums import BoolArray, FloatArray


def discordant(baseline: BoolArray, candidate: BoolArray) -> tuple[int, int]:
    """(pairs that only the baseline got right, pairs that only the candidate got right)."""
    return int((baseline & ~candidate).sum()), int((candidate & ~baseline).sum())


def mcnemar_against(lost: int, won: int) -> float:
    """Exact conditional McNemar, one-sided: P(X >= lost), X ~ Binomial(lost + won, 1/2); McNemar 1947. 1 where no pair is discordant."""
    return float(special.bdtrc(lost - 1, lost + won, 0.5)) if lost else 1.0


def mcnemar(lost: int, won: int) -> float:
    """The same, two-sided: twice the smaller tail, at most 1."""
    return min(1.0, 2.0 * min(mcnemar_against(lost, won), mcnemar_against(won, lost)))


def flip_rate(baseline: BoolArray, candidate: BoolArray, complete: BoolArray) -> float:
    """The share of complete pairs of which one is right and the other wrong; NaN where none is complete."""
    pairs = int(complete.sum())
    return float(((baseline != candidate) & complete).sum() / pairs) if pairs else float("nan")


def holm(p: Sequence[float] | FloatArray) -> FloatArray:
    """Adjusted p-values: for the k-th smallest of m, max over j <= k of (m - j + 1) p_j, at most 1 (Holm 1979)."""
    values = np.asarray(p, dtype=np.float64)
    order: npt.NDArray[np.intp] = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def loss_by_family(
    loss_ST: FloatArray, complete_ST: BoolArray, family_T: npt.NDArray[np.intp], families: int
) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """(mean loss, p) of each family, [G]: one-sided one-sample t of its tasks' mean losses against 0.

    A task is one observation: its mean over the seeds in which its pair is complete. p is 1 for a family of under two tasks, and 0 or 1
    where all its tasks lose the same.
    """
    counts_T = complete_ST.sum(0)
    loss_T = np.where(complete_ST, loss_ST, 0.0).sum(0) / np.maximum(counts_T, 1)
    means, p = np.zeros(families), np.ones(families)
    for family in range(families):
        losses = loss_T[(family_T == family) & (counts_T > 0)]
        if len(losses) < 2:
            continue
        means[family] = losses.mean()
        error = losses.std(ddof=1) / np.sqrt(len(losses))
        if error > 0:
            p[family] = special.stdtr(len(losses) - 1, -means[family] / error)
        else:
            p[family] = float(means[family] <= 0)
    return means, p
