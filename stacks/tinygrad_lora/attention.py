"""Softmax, and grouped-query attention (arXiv:1706.03762, section 3.2.1; arXiv:2305.13245).

Numbers are tensors of shape [1]: a number would become part of the kernel, rounded as its reciprocal and compiled anew for each value.

Shape suffixes: B sequences, T tokens, S tokens that are looked at (= T), H heads of the query, K heads of key and value, G = H / K,
E head_dim, N columns.
"""

from __future__ import annotations

from tinygrad import Tensor

from stacks.tinygrad_lora.elementary import exp
from stacks.tinygrad_lora.linear import matmul


def softmax(x_TN: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis, accumulated in the dtype of x; an entry of -inf gets 0."""
    return _softmax(x_TN, exp((x_TN - x_TN.max(axis=-1, keepdim=True)).detach()))


def visible(tokens: int, *, window_1: Tensor | None = None, valid_BT: Tensor | None = None) -> Tensor:
    """Whether token t sees token s: s <= t, t - s < window where there is one (arXiv:2310.06825), and valid[s].

    Args:
        window_1: int32, of shape [1], at least 1.
        valid_BT: bool.

    Returns:
        bool, [T, S], or [B, 1, T, S] where there is `valid_BT`.
    """
    t_T1, s_1S = Tensor.arange(tokens).reshape(tokens, 1), Tensor.arange(tokens).reshape(1, tokens)
    seen_TS = t_T1 >= s_1S
    if window_1 is not None:
        seen_TS = seen_TS & (t_T1 - s_1S < window_1)
    if valid_BT is None:
        return seen_TS
    return seen_TS & valid_BT.reshape(-1, 1, 1, tokens)


def masked_softmax(scores_BHTS: Tensor, seen_TS: Tensor) -> Tensor:
    """exp(score) over its sum, over what is seen; exactly 0 elsewhere, whatever the score there, and in a row that sees nothing.

    Args:
        scores_BHTS: float32 or float64; accumulated in that dtype.
        seen_TS: bool, as `visible` makes it.
    """
    maximum_BHT1 = seen_TS.where(scores_BHTS, -float("inf")).max(axis=-1, keepdim=True)
    return _softmax(scores_BHTS, seen_TS.where(exp((scores_BHTS - maximum_BHT1).detach()), 0))


def scores(q_BHTE: Tensor, k_BKTE: Tensor, *, sqrt_head_dim_1: Tensor) -> Tensor:
    """q k^T / sqrt(head_dim), [B, H, T, S]; head h looks at key head h // G."""
    B, H, T, E = (int(size) for size in q_BHTE.shape)
    K = int(k_BKTE.shape[1])
    q_BKGTE, k_BK1SE = q_BHTE.reshape(B, K, H // K, T, E), k_BKTE.unsqueeze(2)
    scores_BKGTS = matmul(q_BKGTE, k_BK1SE.transpose(-1, -2)) / sqrt_head_dim_1
    return scores_BKGTS.reshape(B, H, T, T)


def context(weights_BHTS: Tensor, v_BKTE: Tensor) -> Tensor:
    """weights v, [B, H, T, E]; head h looks at value head h // G."""
    B, H, T, _ = (int(size) for size in weights_BHTS.shape)
    K, E = int(v_BKTE.shape[1]), int(v_BKTE.shape[-1])
    return matmul(weights_BHTS.reshape(B, K, H // K, T, T), v_BKTE.unsqueeze(2)).reshape(B, H, T, E)


def attention(q_BHTE: Tensor, k_BKTE: Tensor, v_BKTE: Tensor, *, sqrt_head_dim_1: Tensor, seen_TS: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v over what is seen; 0 where a token sees nothing.

    Args:
        q_BHTE, k_BKTE, v_BKTE: float32 or float64, accumulated in that dtype; H is a multiple of K.
        seen_TS: bool, as `visible` makes it.
    """
    return context(masked_softmax(scores(q_BHTE, k_BKTE, sqrt_head_dim_1=sqrt_head_dim_1), seen_TS), v_BKTE)


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
