"""Matrix products.

Shape suffixes: M rows, K inner length, N columns, T tokens, I in_features, O out_features.
"""

from __future__ import annotations

from tinygrad import Tensor


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
