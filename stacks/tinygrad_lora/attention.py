"""Softmax, and grouped-query attention (arXiv:1706.03762, section 3.2.1; arXiv:2305.13245).

Numbers are tensors of shape [1]: a number would become part of the kernel, rounded as its reciprocal and compiled anew for each value.

bfloat16 is float32 inside, each result rounded once.

Shape suffixes: B sequences, T tokens, S tokens that are looked at (T, and those of a cache), H heads of the query, K heads of key and
value, G = H / K, E head_dim, N columns.
"""

from __future__ import annotations

from tinygrad import Tensor

from stacks.tinygrad_lora.elementary import exp
from stacks.tinygrad_lora.linear import matmul
from stacks.tinygrad_lora.widen import wide


def softmax(x_TN: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis, accumulated in the dtype of x; an entry of -inf gets 0."""
    return _softmax(x_TN, exp((x_TN - x_TN.max(axis=-1, keepdim=True)).detach()))


def masked_softmax(scores_BHTS: Tensor, seen_TS: Tensor) -> Tensor:
    """exp(score) over its sum, over what is seen; exactly 0 elsewhere, whatever the score there, and in a row that sees nothing.

    Args:
        scores_BHTS: float32 or float64, accumulated in that dtype, or bfloat16.
        seen_TS: bool, as `stacks.tinygrad_lora.visible` makes it.
    """
    wide_BHTS = wide(scores_BHTS)
    maximum_BHT1 = seen_TS.where(wide_BHTS, -float("inf")).max(axis=-1, keepdim=True)
    exp_BHTS = seen_TS.where(exp((wide_BHTS - maximum_BHT1).detach()), 0)
    return _softmax(wide_BHTS, exp_BHTS).cast(scores_BHTS.dtype)


def scores(q_BHTE: Tensor, k_BKSE: Tensor, *, divisor_1: Tensor) -> Tensor:
    """q k^T / divisor, [B, H, T, S]; head h looks at key head h // G."""
    B, H, T, E = (int(size) for size in q_BHTE.shape)
    K, S = int(k_BKSE.shape[1]), int(k_BKSE.shape[2])
    q_BKGTE, k_BK1SE = wide(q_BHTE).reshape(B, K, H // K, T, E), wide(k_BKSE).unsqueeze(2)
    scores_BKGTS = matmul(q_BKGTE, k_BK1SE.transpose(-1, -2)) / divisor_1
    return scores_BKGTS.reshape(B, H, T, S).cast(q_BHTE.dtype)


def context(weights_BHTS: Tensor, v_BKSE: Tensor) -> Tensor:
    """weights v, [B, H, T, E]; head h looks at value head h // G."""
    B, H, T, S = (int(size) for size in weights_BHTS.shape)
    K, E = int(v_BKSE.shape[1]), int(v_BKSE.shape[-1])
    context_BKGTE = matmul(wide(weights_BHTS).reshape(B, K, H // K, T, S), wide(v_BKSE).unsqueeze(2))
    return context_BKGTE.reshape(B, H, T, E).cast(weights_BHTS.dtype)


def attention(q_BHTE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, *, divisor_1: Tensor, seen_TS: Tensor) -> Tensor:
    """softmax(q k^T / divisor) v over what is seen; 0 where a token sees nothing.

    Args:
        q_BHTE, k_BKSE, v_BKSE: float32 or float64, accumulated in that dtype, or bfloat16; H is a multiple of K.
        divisor_1: sqrt(head_dim), as a rule; in the dtype that is inside.
        seen_TS: bool, as `stacks.tinygrad_lora.visible` makes it.
    """
    return context(masked_softmax(scores(q_BHTE, k_BKSE, divisor_1=divisor_1), seen_TS), v_BKSE)


def _softmax(x_TN: Tensor, exp_TN: Tensor) -> Tensor:
    """exp over its sum, 0 where that is 0, as a function of x whose derivative is y (dx - sum(y dx)).

    The exponentials are a kernel of their own, or each use would compute them anew.
    """
    exp_TN = exp_TN.contiguous()
    sum_T1 = exp_TN.sum(axis=-1, keepdim=True, dtype=x_TN.dtype)
    # Where anything is seen the sum is at least 1, else 0. A choice by "== 0" takes a NaN for 0 on WebGPU.
    y_TN = (exp_TN / (sum_T1 < 0.5).where(1, sum_T1)).detach()
    # a zero with gradient one, as in elementary.py: no division has to be derived, and nothing is that is masked
    change_TN = x_TN - x_TN.detach()
    return y_TN + y_TN * (change_TN - (y_TN * change_TN).sum(axis=-1, keepdim=True, dtype=x_TN.dtype))
