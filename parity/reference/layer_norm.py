"""LayerNorm and its vector-Jacobian product (Ba, Kiros & Hinton 2016, arXiv:1607.06450, eq. 3; eps under the root).

The variance is the mean of the squares of what the mean is taken off. mean(x^2) - mean(x)^2 is no legal way: its error grows with the
square of mean / standard deviation, and it may come out negative (Chan, Golub & LeVeque 1983, *Algorithms for computing the sample
variance*, section 2). Welford's update is legal: its error, like that of two passes, grows with the ratio itself.

Legend: T tokens, D width.
"""

from __future__ import annotations

from parity.reference.primitive import Attributes, Tensors
from parity.reference.rms_norm import through_the_square
from parity.reference.running_error import Arithmetic, Computed


def layer_norm(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = xhat w + b, xhat = d r, d = x - mean(x), r = 1 / sqrt(mean(d^2) + eps).

    x_grad = r (g - mean(g) - xhat mean(g xhat)), g = y_bar w; weight_grad, bias_grad = sums over tokens of y_bar xhat, y_bar.
    """
    x_TD, weight_D, bias_D = (one.given(tensors[name]) for name in ("x", "weight", "bias"))
    d_TD = x_TD - _mean(x_TD)
    rate_T1 = _rate(_mean(d_TD * d_TD), attrs["eps"])
    xhat_TD = d_TD * rate_T1
    answer = {"y": (xhat_TD * weight_D).either((d_TD * weight_D) * rate_T1) + bias_D}
    if "y_bar" in tensors:
        y_bar_TD = one.given(tensors["y_bar"])
        answer["x_grad"] = _x_grad(y_bar_TD * weight_D, d_TD, rate_T1)
        answer["weight_grad"] = (y_bar_TD * xhat_TD).sum(0)
        answer["bias_grad"] = y_bar_TD.sum(0)
    return answer


def _x_grad(g_TD: Computed, d_TD: Computed, rate_T1: Computed) -> Computed:
    """The closed form, or autograd's: d's shares through the product and the square, each or both less their mean."""
    xhat_TD, product_TD, square_TD = d_TD * rate_T1, g_TD * rate_T1, through_the_square(d_TD, g_TD, rate_T1)
    closed_TD = rate_T1 * (g_TD - _mean(g_TD) - xhat_TD * _mean(g_TD * xhat_TD))
    d_bar_TD = product_TD + square_TD + square_TD
    together_TD = d_bar_TD - _mean(d_bar_TD)
    both_TD = square_TD + square_TD
    apart_TD = (product_TD - _mean(product_TD)) + (both_TD - _mean(both_TD))
    return closed_TD.either(together_TD).either(apart_TD)


def _mean(x_TD: Computed) -> Computed:
    return x_TD.sum(-1, keepdims=True) * (1 / x_TD.shape[-1])


def _rate(variance_T1: Computed, eps: float) -> Computed:
    """1 / sqrt(variance + eps); both the exact and the computed one lie between 0 and that of a variance of 0, which no sum of squares
    falls below, however large its error."""
    one = variance_T1.arithmetic
    largest = one.exact(1.0) / (one.constant(eps).rounded()).sqrt()
    return (one.exact(1.0) / (variance_T1 + eps).sqrt()).capped(largest.size)
