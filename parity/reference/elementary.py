"""Elementary functions to 120 bits, and how many ulp another value is off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np
from scipy.special import erf

from contract.worker.capabilities import Function

_PRECISION_BITS = 120


@dataclass(frozen=True)
class Definition:
    """One function, twice: in float64, and on a number of mpmath's working precision."""

    float64: Callable[[np.ndarray], np.ndarray]
    multiprecision: Callable[[Any], Any]


DEFINITIONS: Mapping[Function, Definition] = {
    "exp": Definition(np.exp, mpmath.exp),
    "log": Definition(np.log, mpmath.log),
    "sqrt": Definition(np.sqrt, mpmath.sqrt),
    "reciprocal": Definition(np.reciprocal, lambda x: 1 / x),
    "tanh": Definition(np.tanh, mpmath.tanh),
    "erf": Definition(erf, mpmath.erf),
    "sin": Definition(np.sin, mpmath.sin),
    "cos": Definition(np.cos, mpmath.cos),
}
"""mpmath reduces sin's and cos' arguments with as many bits more as they take."""


@dataclass(frozen=True)
class Exact:
    """Exact values in units of a dtype's spacing: value + rest * ulp.

    value: float64, the nearest number
    ulp:   float64, the spacing of the dtype at the value
    rest:  float64, what rounding to `value` left, in ulp: right for subnormal values too, which float64 could not scale
    """

    value: np.ndarray
    ulp: np.ndarray
    rest: np.ndarray


def evaluate(function: Function, x: np.ndarray) -> Exact:
    """The function of each element of a vector, in units of x's dtype.

    float32 inputs need float64 only (its error is 1e-9 of float32's ulp); for float64 inputs the values come from mpmath at 120 bits.
    """
    if x.dtype == np.float32:
        value = np.asarray(DEFINITIONS[function].float64(x.astype(np.float64)))
        return Exact(value, ulp(value, "float32"), np.zeros(value.shape))
    exact = DEFINITIONS[function].multiprecision
    with mpmath.workprec(_PRECISION_BITS):
        numbers = [exact(mpmath.mpf(one)) for one in x.tolist()]
        value = np.array([float(one) for one in numbers])
        step = ulp(value, "float64")
        rest = [float((one - near) / mpmath.mpf(unit)) for one, near, unit in zip(numbers, value.tolist(), step.tolist(), strict=True)]
    return Exact(value, step, np.array(rest))


def in_float64(function: Function, x: np.ndarray) -> np.ndarray:
    """The function of each element, by NumPy or SciPy: right where x is zero, infinite or NaN too, and so is the sign of a zero."""
    with np.errstate(all="ignore"):
        return np.asarray(DEFINITIONS[function].float64(x.astype(np.float64)))


def ulp(value: np.ndarray, dtype: str) -> np.ndarray:
    """The spacing of `dtype` at each value, as float64."""
    return np.asarray(np.spacing(np.abs(value).astype(dtype)), dtype=np.float64)


def error_in_ulp(exact: Exact, y: np.ndarray) -> np.ndarray:
    """(y - exact) / ulp, as float64: y - value is exact where they are near, and a division by a power of two is too."""
    return np.asarray((y.astype(np.float64) - exact.value) / exact.ulp - exact.rest)
