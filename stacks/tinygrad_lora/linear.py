"""Matrix products.

Shape suffixes: M rows, K inner length, N columns, B sequences, T tokens, I in_features, O out_features, C slices of O,
S output features of a slice.
"""

from __future__ import annotations

import math

from tinygrad import Tensor

_SLICE = 256
"""Output features of a slice: so many rows of a weight lie in a cache; fewer, where O is no multiple."""
_SMALLEST_SLICE = 16
"""Under this the slices' sum costs more than they save."""


def matmul(a_MK: Tensor, b_KN: Tensor) -> Tensor:
    """y = a b, accumulated in the dtype of a and b.

    Args:
        a_MK: float32 or float64.
        b_KN: the same dtype.
    """
    return a_MK.matmul(b_KN, dtype=a_MK.dtype)


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """y = x weight^T + bias, accumulated in the dtype of x; the bias is added last.

    Args:
        x_TI: float32 or float64.
        weight_OI: the same dtype.
        bias_O: the same dtype, or None.
    """
    y_TO = matmul(x_TI, weight_OI.transpose())
    return y_TO if bias_O is None else y_TO + bias_O


def frozen_linear(x_BTI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """y = x weight^T + bias, accumulated in the dtype of x, whose gradient with respect to x is made in slices of O, then summed.

    Each step of the plain gradient's inner loop jumps a row of the weight, which no cache holds: slices are 2 to 8 times as fast
    (a frozen weight's own gradient nobody wants).

    Args:
        x_BTI: float32 or float64.
        weight_OI: the same dtype.
        bias_O: the same dtype, or None.
    """
    features, width = (int(size) for size in weight_OI.shape)
    slice_size = math.gcd(features, _SLICE)
    if slice_size < _SMALLEST_SLICE:
        return linear(x_BTI, weight_OI, bias_O)
    slices = features // slice_size
    x_CTI = x_BTI.reshape(1, -1, width).expand(slices, -1, -1).contiguous_backward()
    y_CTS = matmul(x_CTI, weight_OI.reshape(slices, slice_size, width).transpose(1, 2))
    y_BTO = y_CTS.transpose(0, 1).reshape(*x_BTI.shape[:-1], features)
    return y_BTO if bias_O is None else y_BTO + bias_O
