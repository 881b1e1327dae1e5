"""RMSNorm and its vector-Jacobian product (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; eps under the root as Llama has it).

Legend: T tokens, D width.
"""

from __future__ import annotations

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed


def rms_norm(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = x r w, r = 1 / sqrt(mean(x^2) + eps).

    x_grad = r (g - xhat mean(g xhat)), weight_grad = sum over tokens of y_bar xhat; xhat = x r, g = y_bar w.
    """
    x_TD, weight_D, width = one.given(tensors["x"]), one.given(tensors["weight"]), tensors["x"].shape[-1]
    mean_T1 = (x_TD * x_TD).sum(-1, keepdims=True) * (1 / width)
    rate_T1 = one.exact(1.0) / (mean_T1 + attrs["eps"]).sqrt()
    xhat_TD = x_TD * rate_T1
    answer = {"y": (xhat_TD * weight_D).either((x_TD * weight_D) * rate_T1)}
    if "y_bar" in tensors:
        y_bar_TD = one.given(tensors["y_bar"])
        g_TD = y_bar_TD * weight_D
        inner_T1 = (g_TD * xhat_TD).sum(-1, keepdims=True) * (1 / width)
        closed_TD = rate_T1 * (g_TD - xhat_TD * inner_T1)
        square_TD = through_the_square(x_TD, g_TD, rate_T1)
        answer["x_grad"] = closed_TD.either(g_TD * rate_T1 + square_TD + square_TD)
        answer["weight_grad"] = (y_bar_TD * xhat_TD).sum(0)
    return answer


def through_the_square(x_TD: Computed, g_TD: Computed, rate_T1: Computed) -> Computed:
    """Half of x's share through r, as autograd has it: one factor's of x * x; r_bar = sum(g x), mean_bar = -r_bar r^3 / 2."""
    mean_bar_T1 = (g_TD * x_TD).sum(-1, keepdims=True) * (rate_T1 * rate_T1 * rate_T1) * -0.5
    return mean_bar_T1 * (1 / x_TD.shape[-1]) * x_TD
