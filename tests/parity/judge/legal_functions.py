"""Elementary functions on the `Number`s of legal_arithmetic.py, each as wrong as DECLARED allows.

What every stack keeps: e^x overflows to infinity; tanh and erf reach +-1 where they lie within LIMIT_IN_U of it; 1 / 1 is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import special

from parity.reference.running_error import LIMIT_IN_U
from tests.parity.judge.legal_arithmetic import ULP, Number, U

LARGEST = float(np.finfo(np.float32).max)


def exp(x: Number) -> Number:
    """e^x."""
    exact = np.exp(x.value)
    over = exact > LARGEST
    return x.rounding.kept(np.where(over, 1.0, exact), ulp=ULP).map(lambda value: np.where(over, np.inf, value))


def log(x: Number) -> Number:
    """ln x."""
    return x.rounding.kept(np.log(x.value), ulp=ULP)


def tanh(x: Number) -> Number:
    """tanh x."""
    return _limited(x, np.tanh, 2 / (np.exp(2 * np.abs(x.value)) + 1))


def erf(x: Number) -> Number:
    """erf x."""
    return _limited(x, special.erf, special.erfc(np.abs(x.value)))


def reciprocal(x: Number) -> Number:
    """1 / x."""
    return x.reciprocal().map(lambda value: np.where(x.value == 1, 1.0, value))


def one_plus(e: Number) -> Number:
    """1 + e of positive e; the nearest number is 1 where e is below u."""
    return (e + 1.0).map(lambda value: np.where(e.value < U, 1.0, value))


def joined(parts: list[Number], axis: int = -1) -> Number:
    """As np.concatenate."""
    return Number(np.concatenate([part.value for part in parts], axis), parts[0].rounding)


def _limited(x: Number, function: Callable[[np.ndarray], np.ndarray], gap: np.ndarray) -> Number:
    moved = x.rounding.kept(function(x.value), ulp=ULP)
    return moved.map(lambda value: np.where(gap <= LIMIT_IN_U * U, np.sign(x.value), value))
