"""Matrix products and the biased linear in float64, with the magnitudes that their bounds need.

Legend: M rows, K inner length, N columns; T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sums:
    """A tensor of inner products, and what is known of their terms.

    value:     sum of the terms, float64
    magnitude: sum of their absolute values ((|A||B|) of Higham 2002, section 3.5)
    squares:   sum of their squares
    length:    how many terms each sum has
    """

    value: np.ndarray
    magnitude: np.ndarray
    squares: np.ndarray
    length: int


def product(a_MK: np.ndarray, b_KN: np.ndarray, bias_N: np.ndarray | None = None) -> Sums:
    """y = a b (+ bias, one more term of each sum), in float64."""
    a, b = a_MK.astype(np.float64), b_KN.astype(np.float64)
    value, magnitude, squares = a @ b, np.abs(a) @ np.abs(b), (a * a) @ (b * b)
    length = a.shape[1]
    if bias_N is not None:
        bias = bias_N.astype(np.float64)
        value, magnitude, squares, length = value + bias, magnitude + np.abs(bias), squares + bias * bias, length + 1
    return Sums(value=value, magnitude=magnitude, squares=squares, length=length)


def matmul(a_MK: np.ndarray, b_KN: np.ndarray, y_bar_MN: np.ndarray) -> dict[str, Sums]:
    """y = a b; a_grad = y_bar b^T; b_grad = a^T y_bar."""
    return {"y": product(a_MK, b_KN), "a_grad": product(y_bar_MN, b_KN.T), "b_grad": product(a_MK.T, y_bar_MN)}


def linear(x_TI: np.ndarray, weight_OI: np.ndarray, bias_O: np.ndarray | None, y_bar_TO: np.ndarray) -> dict[str, Sums]:
    """y = x weight^T + bias; x_grad = y_bar weight; weight_grad = y_bar^T x; bias_grad = sum over tokens of y_bar."""
    sums = {
        "y": product(x_TI, weight_OI.T, bias_O),
        "x_grad": product(y_bar_TO, weight_OI),
        "weight_grad": product(y_bar_TO.T, x_TI),
    }
    if bias_O is not None:
        ones = np.ones((1, y_bar_TO.shape[0]))
        column_sums = product(ones, y_bar_TO)
        sums["bias_grad"] = Sums(
            value=column_sums.value[0], magnitude=column_sums.magnitude[0], squares=column_sums.squares[0], length=column_sums.length
        )
    return sums
