"""Paired losses, added up by training seed and family: all that estimates and bounds need.

Legend: S training seeds, T tasks, G families. A metric's loss is how much worse the candidate is: positive is worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Sums:
    """Losses and scales, each [..., S, G]; the estimate is a ratio, sum of losses / sum of scales.

    For a mean difference the scale of a pair is 1; for a relative one it's the baseline's value.
    """

    loss_SG: FloatArray
    scale_SG: FloatArray

    @property
    def estimate(self) -> FloatArray:
        """[...]: sum of losses / sum of scales."""
        return np.asarray(self.loss_SG.sum((-2, -1)) / self.scale_SG.sum((-2, -1)))

    @property
    def residual_SG(self) -> FloatArray:
        """u_sg = (loss_sg - estimate x scale_sg) / sum of scales: the estimate's linearisation (Cochran 1977, 6.3), which adds to 0."""
        total = self.scale_SG.sum((-2, -1))[..., None, None]
        return np.asarray((self.loss_SG - self.estimate[..., None, None] * self.scale_SG) / total)


def family_numbers(families: Sequence[str]) -> tuple[tuple[str, ...], npt.NDArray[np.intp]]:
    """The families' names in order, and each task's number among them, [T]."""
    names, numbers = np.unique(np.asarray(families, dtype=str), return_inverse=True)
    return tuple(map(str, names)), numbers.astype(np.intp)


def by_family(values_ST: FloatArray, family_T: npt.NDArray[np.intp], families: int) -> FloatArray:
    """[..., S, T] -> [..., S, G]: added up over the tasks of each family."""
    member_TG = (family_T[:, None] == np.arange(families)).astype(np.float64)
    return np.asarray(values_ST @ member_TG)


def paired_sums(
    loss_ST: FloatArray, scale_ST: FloatArray, complete_ST: BoolArray, family_T: npt.NDArray[np.intp], families: int
) -> Sums:  # fmt: skip
    """The sums over complete pairs; any other pair counts in neither sum."""
    loss = by_family(np.where(complete_ST, loss_ST, 0.0), family_T, families)
    return Sums(loss, by_family(np.where(complete_ST, scale_ST, 0.0), family_T, families))


def pooled(parts: Sequence[Sums]) -> Sums:
    """Cycles as one: their training seeds one after the other."""
    return Sums(np.concatenate([part.loss_SG for part in parts], -2), np.concatenate([part.scale_SG for part in parts], -2))


def restricted(attained: BoolArray, when: FloatArray, horizon: float) -> FloatArray:
    """min(when, horizon) where it was attained, else the horizon; its mean is the restricted mean (Royston & Parmar 2013).

    A stalled task will never be valid, so its time is censored at the horizon, where all follow-up ends. To censor it when it stalled
    would say that it goes on like those that did not stall, and to drop it that stalling costs nothing.
    """
    return np.where(attained, np.minimum(when, horizon), horizon)
