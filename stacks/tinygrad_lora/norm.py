"""Normalisation over the last axis.

Sizes that divide, and eps, are tensors of shape [1]: a number would become part of the kernel, rounded as its reciprocal and
compiled anew for each value. bfloat16 is float32 inside, the result rounded once.

Shape suffixes: B sequences, T tokens, D width.
"""

from __future__ import annotations

from tinygrad import Tensor

from stacks.tinygrad_lora.widen import wide


def rms_norm(x_BTD: Tensor, weight_D: Tensor | None, *, width_1: Tensor, eps_1: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467), accumulated in the dtype of x.

    Args:
        x_BTD: float32, float64 or bfloat16, of any number of leading dimensions.
        weight_D: the same dtype; None: without.
        width_1, eps_1: the dtype that is inside; width_1 is D.
    """
    wide_BTD = wide(x_BTD)
    y_BTD = wide_BTD / (_mean(wide_BTD * wide_BTD, width_1) + eps_1).sqrt()
    return (y_BTD if weight_D is None else y_BTD * wide(weight_D)).cast(x_BTD.dtype)


def layer_norm(x_BTD: Tensor, weight_D: Tensor, bias_D: Tensor, *, width_1: Tensor, eps_1: Tensor) -> Tensor:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * weight + bias (arXiv:1607.06450), accumulated in the dtype of x.

    The variance is the mean square of what is centred, over D and not D - 1: the difference of two means would cancel.

    Args:
        x_BTD: float32, float64 or bfloat16, of any number of leading dimensions.
        weight_D, bias_D: the same dtype.
        width_1, eps_1: the dtype that is inside; width_1 is D.
    """
    wide_BTD = wide(x_BTD)
    centred_BTD = wide_BTD - _mean(wide_BTD, width_1)
    variance_BT1 = _mean(centred_BTD * centred_BTD, width_1)
    return (centred_BTD / (variance_BT1 + eps_1).sqrt() * wide(weight_D) + wide(bias_D)).cast(x_BTD.dtype)


def _mean(x_BTD: Tensor, width_1: Tensor) -> Tensor:
    return x_BTD.sum(axis=-1, keepdim=True, dtype=x_BTD.dtype) / width_1
