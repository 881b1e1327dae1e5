"""GELU, exact and by tanh, and their vector-Jacobian products (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2).

Legend: any shape, element by element.
"""

from __future__ import annotations

import math

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import LIMIT_IN_U, Arithmetic, Computed

CUBIC = 0.044715
ROOT_2_OVER_PI = math.sqrt(2 / math.pi)


def gelu(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = x Phi(x), Phi by erf where approximate is none, by tanh where it is tanh; x_grad = y_bar (Phi + x Phi').

    Raises:
        KeyError: `approximate` is neither.
    """
    form = {"none": _by_erf, "tanh": _by_tanh}[attrs["approximate"]]
    x = one.given(tensors["x"])
    twice_phi, slope = form(x)
    answer = {"y": x * 0.5 * twice_phi}
    if "y_bar" in tensors:
        y_bar = one.given(tensors["y_bar"])
        closed = y_bar * (twice_phi * 0.5 + x * 0.5 * slope)
        shares = y_bar * 0.5 * twice_phi + y_bar * (x * 0.5) * slope
        answer["x_grad"] = closed.either(shares)
    return answer


def _by_erf(x: Computed) -> tuple[Computed, Computed]:
    """1 + erf(x / sqrt(2)), and its slope sqrt(2 / pi) e^(-x^2 / 2); the division by sqrt(2) may be a product."""
    z = (x * (1 / math.sqrt(2))).rounded()
    slopes = [(-square).exp() * ROOT_2_OVER_PI for square in (x * x * 0.5, z * z)]
    return z.erf() + 1.0, slopes[0].either(slopes[1]).rounded(2)  # 2 / sqrt(pi) and 1 / sqrt(2) may be two factors


def _by_tanh(x: Computed) -> tuple[Computed, Computed]:
    """1 + t, t = tanh(z), z = sqrt(2 / pi) (x + 0.044715 x^3), and its slope (1 - t^2) z'."""
    one = x.arithmetic
    z = (x + x * x * x * CUBIC) * ROOT_2_OVER_PI
    z = z.either(x * ROOT_2_OVER_PI * (x * x * CUBIC + 1.0))
    t = z.tanh()
    falling = 1.0 - t * t
    gap = 4 * np.exp(-2 * np.maximum(np.abs(z.value) - z.error, 0.0))  # 1 - tanh^2 z is at most that
    at_limit = gap <= 2 * LIMIT_IN_U * one.u  # t is +-1 itself there, and 1 - t^2 is 0
    falling = Computed(falling.value, np.where(at_limit, gap, falling.error), one)
    return t + 1.0, falling * ((x * x * (3 * CUBIC) + 1.0) * ROOT_2_OVER_PI).rounded(2)  # its terms' factors may be rounded apart
