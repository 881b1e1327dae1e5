"""SiLU and its vector-Jacobian product (Elfwing, Uchibe & Doya 2018, arXiv:1702.03118, eq. 4 and 5).

Legend: any shape, element by element.
"""

from __future__ import annotations

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed


def silu(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = x sigmoid(x), x_grad = y_bar sigmoid(x) (1 + x (1 - sigmoid(x)))."""
    x = one.given(tensors["x"])
    sigma = sigmoid(x)
    answer = {"y": x * sigma}
    if "y_bar" in tensors:
        answer["x_grad"] = vector_jacobian(x, sigma, one.given(tensors["y_bar"]))
    return answer


def sigmoid(x: Computed) -> Computed:
    """1 / (1 + e^-x), or e^x / (1 + e^x) where x is negative; 1 itself where 1 + e^-x rounds to it.

    e^-x may overflow: its reciprocal is 0 then. e^x may underflow: so is the quotient.
    """
    one, e = x.arithmetic, (-x).exp()
    sigma = one.exact(1.0) / (e + 1.0)
    sigma = Computed(sigma.value, np.where(e.size < one.u, e.size, sigma.error), one)
    small = x.where(x.value < 0).exp()  # e^0 where x is positive: never the larger error there
    negative = small / (small + 1.0)
    return Computed(sigma.value, np.where(x.value < 0, np.maximum(sigma.error, negative.error), sigma.error), one)


def vector_jacobian(x: Computed, sigma: Computed, y_bar: Computed) -> Computed:
    """y_bar sigma (1 + x (1 - sigma)), as one product or as the shares y_bar sigma and y_bar x sigma (1 - sigma), added."""
    rest = 1.0 - sigma
    closed = y_bar * sigma * (x * rest + 1.0)
    shares = y_bar * sigma + y_bar * x * (sigma * rest)
    return closed.either(shares)
