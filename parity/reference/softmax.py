"""Softmax and its vector-Jacobian product (Bridle 1990; its Jacobian is diag(y) - y y^T).

The quotient of exponentials is bounded, of what the row's maximum is taken off. The maximum is a constant to the gradient.

Legend: T rows, N entries; attention has more axes before the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed


def softmax(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y_i = exp(x_i) / sum_j exp(x_j); exactly 0 where x_i = -inf. x_grad = y (y_bar - sum(y_bar y)).

    A row that holds NaN is NaN.
    """
    x_TN, hidden_TN = tensors["x"], np.isneginf(tensors["x"])
    row = Softmax.of(one.given(np.where(hidden_TN, 0.0, x_TN)), ~hidden_TN)
    answer = {"y": row.y}
    if "y_bar" in tensors:
        answer["x_grad"] = row.gradient(one.given(tensors["y_bar"]))
    return answer


@dataclass(frozen=True, eq=False)
class Softmax:
    """Each row's exponentials over their sum; what is not `seen` is exactly 0, and so is a row that sees nothing."""

    seen: np.ndarray
    e: Computed
    total: Computed
    y: Computed

    @classmethod
    def of(cls, x: Computed, seen: np.ndarray) -> Softmax:
        """y = e / S, e = exp(x - max x), S = sum e.

        No common shift changes a softmax, so that the maximum's own error counts in the difference's rounding alone, and where e
        underflows: there e^(that error) times as much is lost.
        """
        one = x.arithmetic
        some: np.ndarray = np.any(seen, axis=-1, keepdims=True)
        top = np.where(some, np.max(np.where(seen, x.value, -np.inf), axis=-1, keepdims=True), 0.0)
        top_error = np.max(np.where(seen, x.error, 0.0), axis=-1, keepdims=True)
        less = Computed(x.value - top, x.error + one.u * top_error, one).where(seen).rounded()
        e = less.exp().where(seen)
        with np.errstate(over="ignore"):
            e = Computed(e.value, np.where(e.error > 0, e.error * np.exp(top_error), 0.0), one)
        total = e.sum(-1, keepdims=True).where(some, 1.0)
        return cls(seen, e, total, (e / total).capped(1 + 4 * one.u))

    def gradient(self, y_bar: Computed) -> Computed:
        """y (y_bar - sum(y_bar y)), multiplied out or not; or autograd's, e's shares through the quotient."""
        rate, inner = self.total.arithmetic.exact(1.0) / self.total, (y_bar * self.y).sum(-1, keepdims=True)
        closed = self.y * (y_bar - inner)
        products = self.y * y_bar - self.y * inner
        shares = self.e * (y_bar * rate - (y_bar * self.e).sum(-1, keepdims=True) * (rate * rate))
        return closed.either(products).either(shares).where(self.seen)
