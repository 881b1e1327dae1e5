"""Causal attention with grouped queries, a window and padding, and its vector-Jacobian product.

    context = softmax(q k^T / sqrt(E)) v               Vaswani et al. 2017, arXiv:1706.03762, eq. 1
    head h looks at key head h // (H / K)              Ainslie et al. 2023, arXiv:2305.13245, section 2.2
    token t sees s: t - window < s <= t                Jiang et al. 2023, arXiv:2310.06825, section 2 (Mistral 7B)

A token that sees none has context 0, and no gradient.

Legend: B sequences, T tokens, S tokens that are looked at (= T), H heads, K key heads, G = H / K, E head_dim.
"""

from __future__ import annotations

import math

import numpy as np

from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed
from parity.reference.softmax import Softmax


def attention(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """context = p v, p = softmax(scores), scores = q k^T / sqrt(E).

    v_grad = p^T context_bar, p_bar = context_bar v^T, scores_bar = p (p_bar - sum(p_bar p)), q_grad = scores_bar k / sqrt(E),
    k_grad = scores_bar^T q / sqrt(E); those of keys and values are sums over the G heads of their group.
    """
    batch, heads, length, head_dim = tensors["q"].shape
    key_heads = tensors["k"].shape[1]
    grouped = (batch, key_heads, heads // key_heads, length, head_dim)
    q_BKGTE = one.given(tensors["q"]).reshape(*grouped)
    k_BK1SE, v_BK1SE = (one.given(tensors[name])[:, :, None] for name in ("k", "v"))
    seen_B11TS = visible(length, attrs.get("window"), tensors.get("valid"))
    row = Softmax.of(_scaled_product(q_BKGTE, k_BK1SE.swapaxes(-1, -2), head_dim), np.broadcast_to(seen_B11TS, (*grouped[:4], length)))
    answer = {"context": (row.y @ v_BK1SE).reshape(*tensors["q"].shape)}
    if "context_bar" in tensors:
        context_bar_BKGTE = one.given(tensors["context_bar"]).reshape(*grouped)
        scores_bar_BKGTS = row.gradient(context_bar_BKGTE @ v_BK1SE.swapaxes(-1, -2))
        answer["q_grad"] = _scaled_product(scores_bar_BKGTS, k_BK1SE, head_dim).reshape(*tensors["q"].shape)
        answer["k_grad"] = _scaled_product(_over_the_group(scores_bar_BKGTS).swapaxes(-1, -2), _over_the_group(q_BKGTE), head_dim)
        answer["v_grad"] = _over_the_group(row.y).swapaxes(-1, -2) @ _over_the_group(context_bar_BKGTE)
    return answer


def visible(length: int, window: int | None, valid_BS: np.ndarray | None) -> np.ndarray:
    """[B or 1, 1, 1, T, S]: token t sees s <= t, t - s < window, valid[s]."""
    distance_TS = np.arange(length)[:, None] - np.arange(length)
    seen_TS = (distance_TS >= 0) & (distance_TS < (length if window is None else window))
    seen: np.ndarray = seen_TS[None, None, None] if valid_BS is None else seen_TS & valid_BS[:, None, None, None, :]
    return seen


def _scaled_product(a: Computed, b: Computed, head_dim: int) -> Computed:
    """a b / sqrt(E): the product divided, or each operand by E^(1/4), as torch's scaled_dot_product_attention does."""
    scale = 1 / math.sqrt(head_dim)
    return ((a @ b) * scale).either((a * math.sqrt(scale)) @ (b * math.sqrt(scale)))


def _over_the_group(x_BKGTX: Computed) -> Computed:
    """[B, K, G, T, X] -> [B, K, G T, X]."""
    batch, key_heads, group, length, width = x_BKGTX.shape
    return x_BKGTX.reshape(batch, key_heads, group * length, width)
