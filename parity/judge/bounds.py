"""How far a correct result may lie from the exact one: derived from the data, never typed by hand.

u is the unit roundoff of the dtype that accumulates: half the spacing at 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from scipy.special import chdtri

from contract.worker.capabilities import Elementary
from parity.reference.products import Sums

HIGHAM = "Higham 2002, eq. 3.5"
HIGHAM_MARY = "Higham & Mary 2020, thm 2.8, with this data's partial sums"
DECLARED_ULP_WITHOUT_WAIVER = 8.0
"""An elementary function declared worse than this is a finding, so that no declaration buys a pass (docs/theory.md).

In ulp; and for the absolute part, which is there for flushed subnormal results, in smallest normal numbers of the dtype."""


@dataclass(frozen=True)
class Bound:
    """The largest allowed |observed - exact| per element, and where that number comes from."""

    limit: np.ndarray
    source: str


def unit_roundoff(dtype: str) -> float:
    """u = eps / 2: the largest relative error of one rounding to nearest."""
    return float(_finfo(dtype).eps) / 2


def smallest_normal(dtype: str) -> float:
    """The smallest positive normal number: what one operation may lose below it, flushed or gradual."""
    return float(_finfo(dtype).smallest_normal)


def _finfo(dtype: str) -> np.finfo[np.floating]:
    """Of bfloat16 too, of which NumPy's own knows nothing."""
    found: np.finfo[np.floating] = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    return found


def gamma(length: int, u: float) -> float:
    """gamma_k = k u / (1 - k u) (Higham 2002, lemma 3.1).

    Raises:
        ValueError: k u >= 1: so long a sum has no bound in this dtype.
    """
    if length * u >= 1:
        raise ValueError(f"a sum of {length} terms has no bound at u = {u}; use a wider accumulator")
    return length * u / (1 - length * u)


def sums(exact: Sums, dtype: str) -> Bound:
    """|y - y_exact| <= gamma_k (|A||B|) + k * smallest normal, in any order of summation, for all data.

    The reference's own float64 error is of the same form and added.
    """
    limit = gamma(exact.length, unit_roundoff(dtype)) * exact.magnitude + exact.length * smallest_normal(dtype)
    reference = gamma(exact.length, unit_roundoff("float64")) * exact.magnitude if dtype != "float64" else 0.0
    return Bound(limit + reference, f"gamma_{exact.length} |A||B| ({HIGHAM})")


def sums_root_mean_square(exact: Sums, dtype: str, false_alarm: float) -> tuple[np.ndarray, float, str]:
    """For zero-mean random data: each element's error scale, and the limit on the root mean square of error / scale.

    A sum of k terms p_j, taken one after the other in random order, passes through partial sums s_j with
    E s_j^2 = (j/k) Q + j (j-1) / (k (k-1)) (S^2 - Q), where S = sum p and Q = sum p^2. Each of its k - 1 additions and k products
    errs by at most u times its result, so with errors of mean zero, uncorrelated, the error's variance is at most

        scale^2 = u^2 (Q + sum over j = 2..k of E s_j^2) = u^2 (Q + Q ((k+1)/2 - 1/k) + (S^2 - Q) (k+1)/3).

    Any other order (pairwise, blocked, vector lanes, fused) has smaller partial sums in that expectation. The mean of N squared
    normal variables of variance at most 1 exceeds chi2.isf(p, N) / N, which is chdtri(N, p) / N, with probability at most p. A
    rounding's real variance is at most about a third of u^2, so the limit has a factor of 1.7 or more to spare.
    """
    k, total, squares = exact.length, exact.value, exact.squares
    variance = squares * ((k + 1) / 2 - 1 / k + 1) + (total * total - squares) * (k + 1) / 3
    scale = unit_roundoff(dtype) * np.sqrt(np.maximum(variance, 0.0)) + k * smallest_normal(dtype)
    limit = float(np.sqrt(chdtri(exact.value.size, false_alarm) / exact.value.size))
    return scale, limit, f"root mean square over {exact.value.size} sums, false alarm {false_alarm:.1e} ({HIGHAM_MARY})"


def elementary(declared: Elementary, ulp: np.ndarray) -> Bound:
    """What a stack declared of one function, in ulp of the exact values: ulp + absolute / one ulp."""
    limit = declared.ulp + declared.absolute / ulp
    return Bound(limit, f"declared: {declared.ulp:g} ulp + {declared.absolute:g} on [{declared.low:g}, {declared.high:g}]")
