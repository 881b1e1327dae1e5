"""A linear with a low-rank adapter, and its vector-Jacobian products (Hu et al. 2021, arXiv:2106.09685, eq. 3; rank-stabilised s:
Kalajdzievski 2023, arXiv:2312.03732). Dropout's mask is given.

Legend: T tokens, I in_features, O out_features, R rank, K terms of one sum.
"""

from __future__ import annotations

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import REFERENCE, Arithmetic, Computed


def lora_linear(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """y = x W^T + bias + s h B^T, h = (x keep / (1 - dropout)) A^T.

    With d = s y_bar and g = d B: x_grad = y_bar W + (g A) keep / (1 - dropout), lora_a_grad = g^T (x keep / (1 - dropout)),
    lora_b_grad = d^T h. The base and the adapter are one sum, which any order may take; s stands where it rounds most: before the
    sum over ranks, before that over outputs.
    """
    x_TI, weight_OI = one.given(tensors["x"]), one.given(tensors["weight"])
    lora_a_RI, lora_b_OR = one.given(tensors["lora_a"]), one.given(tensors["lora_b"])
    s = one.cast(scaling(attrs, lora_a_RI.shape[0]))
    kept_TI = _dropped(x_TI, tensors, attrs)
    h_TR = kept_TI @ lora_a_RI.swapaxes(0, 1)
    terms_TK, factors_OK = [x_TI, h_TR * s], [weight_OI, lora_b_OR]
    if "bias" in tensors:
        terms_TK.append(one.exact(np.ones((x_TI.shape[0], 1))))
        factors_OK.append(one.given(tensors["bias"][:, None]))
    answer = {"y": _joined(terms_TK) @ _joined(factors_OK).swapaxes(0, 1)}
    if "y_bar" in tensors:
        y_bar_TO = one.given(tensors["y_bar"])
        d_TO = y_bar_TO * s
        g_TR = d_TO @ lora_b_OR
        answer["x_grad"] = _input_gradient(y_bar_TO, weight_OI, g_TR, lora_a_RI, tensors, attrs)
        answer["lora_a_grad"] = g_TR.swapaxes(0, 1) @ kept_TI
        answer["lora_b_grad"] = d_TO.swapaxes(0, 1) @ h_TR
    return answer


def scaling(attrs: Attributes, rank: int) -> Computed:
    """s = alpha / rank, or alpha / sqrt(rank) where rslora, on the host in float64."""
    alpha, ranks = REFERENCE.exact(attrs["alpha"]), REFERENCE.exact(float(rank))
    return alpha / (ranks.sqrt() if attrs["rslora"] else ranks)


def _dropped(x_TI: Computed, tensors: Tensors, attrs: Attributes) -> Computed:
    """x keep / (1 - dropout): 0 where it is dropped, rescaled elsewhere; x itself without `keep`."""
    if "keep" not in tensors:
        return x_TI
    rescaled_TI = x_TI * _rescaling(x_TI.arithmetic, attrs) if attrs["dropout"] else x_TI
    return rescaled_TI.where(tensors["keep"])


def _rescaling(one: Arithmetic, attrs: Attributes) -> Computed:
    """1 / (1 - dropout), which the kernel may divide by instead."""
    kept = 1 - REFERENCE.exact(attrs["dropout"])
    return one.cast(REFERENCE.exact(1.0) / kept).rounded()


def _input_gradient(
    y_bar_TO: Computed, weight_OI: Computed, g_TR: Computed, lora_a_RI: Computed, tensors: Tensors, attrs: Attributes
) -> Computed:
    """y_bar W + (g A) keep / (1 - dropout), one sum; y_bar W alone where x is dropped."""
    one = g_TR.arithmetic
    if "keep" in tensors and attrs["dropout"]:
        g_TR = g_TR * _rescaling(one, attrs)
    whole_TI = _joined([y_bar_TO, g_TR]) @ _joined([weight_OI.swapaxes(0, 1), lora_a_RI.swapaxes(0, 1)]).swapaxes(0, 1)
    if "keep" not in tensors:
        return whole_TI
    base_TI, keep_TI = y_bar_TO @ weight_OI, tensors["keep"]
    return Computed(np.where(keep_TI, whole_TI.value, base_TI.value), np.where(keep_TI, whole_TI.error, base_TI.error), one)


def _joined(parts: list[Computed]) -> Computed:
    return Computed.concatenate(parts, -1)
