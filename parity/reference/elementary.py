"""Elementary functions to 120 bits, and how many ulp another value is off."""

from __future__ import annotations

import mpmath
import numpy as np

_PRECISION_BITS = 120


def evaluate(function: str, x: np.ndarray) -> np.ndarray:
    """exp or log of each element of a vector.

    float32 inputs need float64 only (its error is 1e-9 of float32's ulp); for float64 inputs the values are mpmath numbers of 120
    bits, in an array of objects.
    """
    if x.dtype == np.float32:
        return np.asarray({"exp": np.exp, "log": np.log}[function](x.astype(np.float64)))
    with mpmath.workprec(_PRECISION_BITS):
        return np.array([{"exp": mpmath.exp, "log": mpmath.log}[function](mpmath.mpf(float(value))) for value in x], dtype=object)


def ulp(exact: np.ndarray, dtype: str) -> np.ndarray:
    """The spacing of `dtype` at each exact value, as float64."""
    return np.asarray(np.spacing(np.abs(exact.astype(np.float64)).astype(dtype)), dtype=np.float64)


def error_in_ulp(exact: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(y - exact) / ulp of y's dtype at exact, as float64; right for subnormal values too, which float64 could not scale."""
    if exact.dtype != object:
        return np.asarray((y.astype(np.float64) - exact) / ulp(exact, y.dtype.name))
    with mpmath.workprec(_PRECISION_BITS):
        steps = zip(exact, y, ulp(exact, y.dtype.name), strict=True)
        return np.array([_ratio(value, float(one), float(step)) for value, one, step in steps])


def _ratio(exact: mpmath.mpf, y: float, step: float) -> float:
    return float((mpmath.mpf(y) - exact) / mpmath.mpf(step)) if np.isfinite(y) else y
