"""Causal grouped-query attention in its three steps: scores, weights, context.

Legend: B sequences, H heads of the query, K heads of key and value, G = H / K, T tokens, S tokens that are looked at (= T), E head_dim.
"""

from __future__ import annotations

import math

import torch


def attention(
    q_BHTE: torch.Tensor, k_BKTE: torch.Tensor, v_BKTE: torch.Tensor, *, window: int | None = None, valid_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """context = softmax(q k^T / sqrt(E)) v, [B, H, T, E], over the tokens that `causal_softmax` lets a token see (arXiv:1706.03762)."""
    weights_BHTS = causal_softmax(scores(q_BHTE, k_BKTE), window=window, valid_BT=valid_BT)
    return grouped(weights_BHTS, v_BKTE)


def scores(q_BHTE: torch.Tensor, k_BKTE: torch.Tensor, *, divisor: float | None = None) -> torch.Tensor:
    """q k^T / sqrt(E), or over the divisor that is given, [B, H, T, S]."""
    products_BHTS = grouped(q_BHTE, k_BKTE.transpose(2, 3))
    return products_BHTS / math.sqrt(q_BHTE.shape[-1]) if divisor is None else products_BHTS / divisor


def grouped(a_BHTX: torch.Tensor, b_BKXY: torch.Tensor) -> torch.Tensor:
    """a b, [B, H, T, Y], where head h of a meets head h // (H / K) of b (grouped-query attention, arXiv:2305.13245)."""
    a_BKGTX = torch.unflatten(a_BHTX, 1, (b_BKXY.shape[1], -1))
    return torch.matmul(a_BKGTX, b_BKXY.unsqueeze(2)).flatten(1, 2)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """exp(x) / sum(exp(x)) over the last dimension, in x's dtype; an entry of -inf gets 0.

    bfloat16 is float32 inside, backward too: CUDA's backward pass of a softmax in bfloat16 rounds gradient times result before it sums.
    """
    if x.dtype == torch.bfloat16:
        return torch.softmax(x, dim=-1, dtype=torch.float32).bfloat16()
    return torch.softmax(x, dim=-1)


def causal_softmax(scores_BHTS: torch.Tensor, *, window: int | None = None, valid_BT: torch.Tensor | None = None) -> torch.Tensor:
    """softmax over the tokens s that t sees: s <= t, t - s < window, valid[s]; exactly 0 for all others, forward and backward.

    Args:
        window: how many tokens t sees at most, itself among them (sliding window, arXiv:2310.06825).
        valid_BT: False where a token is padding. A token that then sees none has weights of 0 and gives no gradient.
    """
    hidden_TS = causally_hidden(scores_BHTS.shape[-1], window=window, device=scores_BHTS.device)
    if valid_BT is None:
        return masked_softmax(scores_BHTS, hidden_TS, None)
    hidden_B1TS = hidden_TS | ~valid_BT[:, None, None, :]
    return masked_softmax(scores_BHTS, hidden_B1TS, hidden_B1TS.all(dim=-1, keepdim=True))


def causally_hidden(tokens: int, *, window: int | None, device: torch.device) -> torch.Tensor:
    """True where t does not see s: s > t, or t - s >= window; [T, S] bool."""
    hidden_TS = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(diagonal=1)
    if window is not None:
        hidden_TS |= torch.ones_like(hidden_TS).tril(diagonal=-window)
    return hidden_TS


def masked_softmax(scores_BHTS: torch.Tensor, hidden: torch.Tensor, blind_B1T1: torch.Tensor | None) -> torch.Tensor:
    """softmax over what is not hidden; a blind token, from which all is hidden, has weights of 0."""
    masked_BHTS = scores_BHTS.masked_fill(hidden, -math.inf)
    if blind_B1T1 is None:
        return softmax(masked_BHTS)
    # A row of -inf alone would be 0 / 0: a blind row is all zeros instead, and its even weights are then dropped.
    return softmax(masked_BHTS.masked_fill(blind_B1T1, 0.0)).masked_fill(blind_B1T1, 0.0)
