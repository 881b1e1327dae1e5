"""Matrix products and the biased linear in float64, with the magnitudes that their bounds need.

Legend: M rows, K inner length, N columns; T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Sums:
    """A tensor of inner products, and what is known of their terms; each is computed when it is first asked for.

    a [M, K], b [K, N] and, where there is one, bias [N], all float64.
    """

    a: np.ndarray
    b: np.ndarray
    bias: np.ndarray | None = None
    shape: tuple[int, ...] | None = None

    @property
    def length(self) -> int:
        """How many terms each sum has; a bias is one more."""
        return int(self.a.shape[1]) + (self.bias is not None)

    @cached_property
    def value(self) -> np.ndarray:
        """The sum of the terms."""
        return self._of(self.a, self.b, self.bias)

    @cached_property
    def magnitude(self) -> np.ndarray:
        """The sum of the terms' absolute values: (|A||B|) of Higham 2002, section 3.5."""
        return self._of(np.abs(self.a), np.abs(self.b), None if self.bias is None else np.abs(self.bias))

    @cached_property
    def squares(self) -> np.ndarray:
        """The sum of the terms' squares."""
        return self._of(self.a * self.a, self.b * self.b, None if self.bias is None else self.bias * self.bias)

    def _of(self, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        total: np.ndarray = a @ b if bias is None else a @ b + bias
        return total if self.shape is None else total.reshape(self.shape)


def product(a_MK: np.ndarray, b_KN: np.ndarray, bias_N: np.ndarray | None = None, *, shape: tuple[int, ...] | None = None) -> Sums:
    """y = a b (+ bias), in float64, reshaped to `shape` if given."""
    bias = None if bias_N is None else bias_N.astype(np.float64)
    return Sums(a=a_MK.astype(np.float64, copy=False), b=b_KN.astype(np.float64, copy=False), bias=bias, shape=shape)


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
        sums["bias_grad"] = product(np.ones((1, y_bar_TO.shape[0])), y_bar_TO, shape=bias_O.shape)
    return sums
