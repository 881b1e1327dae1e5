"""Elementary functions, exact to well under a thousandth of an ulp of the dtype that is judged (where float64 is
subnormal, to half an ulp)."""

from __future__ import annotations

import mpmath
import numpy as np

_PRECISION_BITS = 120


def evaluate(function: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """exp or log of each element of a vector, as an unevaluated sum of two float64 (head, tail).

    float32 inputs need one float64 (relative error 1e-16 against an ulp of 1e-7), so the tail is 0; for float64 inputs
    mpmath evaluates to 120 bits and the tail holds what the head rounded away (under float64's last place there is no tail).
    """
    if x.dtype == np.float32:
        head = {"exp": np.exp, "log": np.log}[function](x.astype(np.float64))
        return head, np.zeros_like(head)
    with mpmath.workprec(_PRECISION_BITS):
        exact = [{"exp": mpmath.exp, "log": mpmath.log}[function](mpmath.mpf(float(value))) for value in x]
        head = np.array([float(value) for value in exact])
        tail = np.array([float(value - mpmath.mpf(float(rounded))) for value, rounded in zip(exact, head, strict=True)])
    return head, tail
