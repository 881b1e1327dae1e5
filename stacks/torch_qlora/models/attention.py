"""A layer's attention between its projections, in its three steps or as one kernel.

Shape legend: B sequences, T tokens, S tokens that are looked at (= T; with a cache, those of it too), H heads of the query, K heads of key
and value, E head_dim, Q = H E.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stacks.torch_qlora.attention import grouped, masked_softmax, scores
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.taps import Tap
from stacks.torch_qlora.visible import Visible


@dataclass(frozen=True, kw_only=True)
class Attention:
    """One layer's attention between its projections.

    window: how many tokens a token sees; None: all before it. divisor: of the scores; None: sqrt(head_dim).
    """

    layer: int
    fused: bool
    window: int | None = None
    divisor: float | None = None

    def __call__(
        self, q_BHTE: torch.Tensor, k_BKTE: torch.Tensor, v_BKTE: torch.Tensor, visible: Visible, cache: KeyValueCache | None, tap: Tap
    ) -> torch.Tensor:
        """The context, heads side by side, [B, T, Q]; `scores` and `weights` are shown on the plain path."""
        k_BKSE, v_BKSE = (k_BKTE, v_BKTE) if cache is None else cache.extend(self.layer, k_BKTE, v_BKTE)
        if self.fused:
            context_BHTE = fused_attention(q_BHTE, k_BKSE, v_BKSE, visible, window=self.window, divisor=self.divisor)
        else:
            scores_BHTS = tap("scores", scores(q_BHTE, k_BKSE, divisor=self.divisor))
            weights_BHTS = tap("weights", masked_softmax(scores_BHTS, visible.hidden(self.window), visible.blind_B1T1))
            context_BHTE = grouped(weights_BHTS, v_BKSE)
        return tap("context", context_BHTE.transpose(1, 2).flatten(2))


def fused_attention(
    q_BHTE: torch.Tensor, k_BKSE: torch.Tensor, v_BKSE: torch.Tensor, visible: Visible, *, window: int | None, divisor: float | None
) -> torch.Tensor:
    """The context [B, H, T, E] by torch's scaled_dot_product_attention, which keeps no [T, S] for the backward pass.

    K and V are not copied for the heads that share them, but where CUDA has no kernel that shares them. A blind token's mask is empty,
    since a row of -inf is NaN in some kernels; what it then sees is dropped.
    """
    if q_BHTE.dtype == torch.bfloat16 and q_BHTE.device.type == "cpu":
        # The CPU's kernel takes twice the time for the backward pass in bfloat16, of what the casts and float32 take.
        wide = (q_BHTE.float(), k_BKSE.float(), v_BKSE.float())
        return fused_attention(*wide, visible, window=window, divisor=divisor).bfloat16()
    mask = visible.mask(window, q_BHTE.dtype)
    if q_BHTE.device.type == "cuda" and (mask is not None or q_BHTE.dtype != torch.bfloat16):
        # Of the kernels that keep no [T, S], the one that takes float32 or a mask knows no shared heads; torch would fall back to none.
        k_BKSE, v_BKSE = (for_each_head(x_BKSE, q_BHTE.shape[1]) for x_BKSE in (k_BKSE, v_BKSE))
    context_BHTE = torch.nn.functional.scaled_dot_product_attention(
        q_BHTE, k_BKSE, v_BKSE, attn_mask=mask, is_causal=mask is None, scale=None if divisor is None else 1 / divisor,
        enable_gqa=q_BHTE.shape[1] != k_BKSE.shape[1],
    )  # fmt: skip
    return context_BHTE if visible.blind_B1T1 is None else context_BHTE.masked_fill(visible.blind_B1T1, 0.0)


def for_each_head(x_BKSE: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, K, S, E] -> [B, H, S, E]: head h has what head h // (H / K) has."""
    return x_BKSE if heads == x_BKSE.shape[1] else x_BKSE.repeat_interleave(heads // x_BKSE.shape[1], dim=1)


def split_heads(x_BTQ: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[B, T, H E] -> [B, H, T, E]."""
    return torch.unflatten(x_BTQ, 2, (-1, head_dim)).transpose(1, 2)
