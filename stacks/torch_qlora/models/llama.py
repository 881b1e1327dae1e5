"""The Llama architecture (arXiv:2302.13971): RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.

Three sections, each a module that shows its inner values (contract/worker/taps.py): what a submodule computes is the tap of
the submodule's name, everything else goes through `tap(name, value)`, which answers the value to go on with.

Shape legend: B sequences, T tokens, S tokens that are looked at (= T), D hidden_size, V vocab_size, F intermediate_size,
H num_attention_heads, K num_key_value_heads, G = H / K, E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from contract.model.layout import LlamaLayout
from contract.worker.graph import IGNORE_INDEX
from contract.worker.taps import LINEARS
from stacks.torch_qlora.linear import linear
from stacks.torch_qlora.loss import chunked_cross_entropy, cross_entropy

Tap = Callable[[str, torch.Tensor], torch.Tensor]
"""(name, what was computed) -> what to go on with."""


class Source(Protocol):
    """Where a section's weights come from: one at a time, in the graph's dtype, on its device."""

    def tensor(self, name: str) -> nn.Parameter:
        """A frozen weight by its name in contract/worker/graph.py."""

    def linear(self, name: str) -> nn.Module:
        """A frozen linear of a block, with its bias where the layout has one."""


class RmsNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467), all of it in x's dtype."""

    def __init__(self, weight_D: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = weight_D, eps

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """y [B, T, D]."""
        mean_square_BT1 = x_BTD.square().mean(dim=-1, keepdim=True)
        return x_BTD / torch.sqrt(mean_square_BT1 + self.eps) * self.weight


class Embedding(nn.Module):
    """The section `embedding`: each token's row."""

    def __init__(self, layout: LlamaLayout, source: Source) -> None:
        super().__init__()
        self.weight = source.tensor("embedding")

    def forward(self, ids_BT: torch.Tensor, tap: Tap) -> torch.Tensor:
        """x [B, T, D]."""
        return tap("embedding", nn.functional.embedding(ids_BT, self.weight))


class Block(nn.Module):
    """A section `layers.N`: attention, then the gated MLP, each normed before and added after."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, layout: LlamaLayout, source: Source, section: str) -> None:
        super().__init__()
        self.head_dim = layout.head_dim
        self.attention_norm = RmsNorm(source.tensor(f"{section}.attention_norm"), layout.rms_norm_eps)
        self.mlp_norm = RmsNorm(source.tensor(f"{section}.mlp_norm"), layout.rms_norm_eps)
        for name in LINEARS:
            self.add_module(name, source.linear(f"{section}.{name}"))

    def forward(self, x_BTD: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor, tap: Tap) -> torch.Tensor:
        """x + attention(norm(x)), then x + mlp(norm(x)), [B, T, D]."""
        normed_BTD = self.attention_norm(x_BTD)
        q_BHTE = split_heads(self.q_proj(normed_BTD), self.head_dim)
        k_BKTE = split_heads(self.k_proj(normed_BTD), self.head_dim)
        v_BKTE = split_heads(self.v_proj(normed_BTD), self.head_dim)
        q_BHTE = tap("q_rope", rope(q_BHTE, cos_TE, sin_TE))
        k_BKTE = tap("k_rope", rope(k_BKTE, cos_TE, sin_TE))
        scores_BHTS = tap("scores", grouped(q_BHTE, k_BKTE.transpose(2, 3)) / math.sqrt(self.head_dim))
        weights_BHTS = tap("weights", causal_softmax(scores_BHTS))
        context_BTQ = tap("context", grouped(weights_BHTS, v_BKTE).transpose(1, 2).flatten(2))
        x_BTD = tap("attention_residual", x_BTD + self.o_proj(context_BTQ))
        normed_BTD = self.mlp_norm(x_BTD)
        activation_BTF = tap("activation", nn.functional.silu(self.gate_proj(normed_BTD)))
        gated_BTF = tap("gated", activation_BTF * self.up_proj(normed_BTD))
        return tap("output", x_BTD + self.down_proj(gated_BTF))


class Head(nn.Module):
    """The section `head`: the last norm, the logits, and the loss of each token's successor.

    Args:
        weight_VD: the projection; the embedding's own parameter where they are tied.
        chunked: the loss in chunks of rows, without the whole matrix of logits.
    """

    def __init__(self, layout: LlamaLayout, source: Source, weight_VD: nn.Parameter, *, chunked: bool) -> None:
        super().__init__()
        self.final_norm = RmsNorm(source.tensor("final_norm"), layout.rms_norm_eps)
        self.weight, self.chunked = weight_VD, chunked

    def forward(self, x_BTD: torch.Tensor, labels_BT: torch.Tensor | None, tap: Tap) -> None:
        """logits = norm(x) weight^T; where labels are given, loss = mean of -log softmax(logits[b, t])[labels[b, t + 1]]."""
        normed_BTD = self.final_norm(x_BTD)
        if self.chunked:
            if labels_BT is not None:
                rows_RD, next_R = normed_BTD[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
                tap("loss", chunked_cross_entropy(rows_RD, self.weight, next_R, ignore_index=IGNORE_INDEX))
            return
        logits_BTV = tap("logits", linear(normed_BTD, self.weight))
        if labels_BT is not None:
            rows_RV, next_R = logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten()
            tap("loss", cross_entropy(rows_RV, next_R, reduction="mean", ignore_index=IGNORE_INDEX))


def split_heads(x_BTQ: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[B, T, H E] -> [B, H, T, E]."""
    return torch.unflatten(x_BTQ, 2, (-1, head_dim)).transpose(1, 2)


def grouped(a_BHTX: torch.Tensor, b_BKXY: torch.Tensor) -> torch.Tensor:
    """a b, [B, H, T, Y], where head h of a meets head h // (H / K) of b (grouped-query attention, arXiv:2305.13245)."""
    a_BKGTX = torch.unflatten(a_BHTX, 1, (b_BKXY.shape[1], -1))
    return torch.matmul(a_BKGTX, b_BKXY.unsqueeze(2)).flatten(1, 2)


def causal_softmax(scores_BHTS: torch.Tensor) -> torch.Tensor:
    """softmax over s <= t; exactly 0 where s > t."""
    tokens = scores_BHTS.shape[-1]
    future_TS = torch.ones(tokens, tokens, dtype=torch.bool, device=scores_BHTS.device).triu(diagonal=1)
    return torch.softmax(scores_BHTS.masked_fill(future_TS, -math.inf), dim=-1)


def rope_tables(layout: LlamaLayout, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of t theta^(-2 i / E), i = 0 .. E / 2 - 1, twice over, [T, E] (RoFormer, arXiv:2104.09864).

    On the host in float64, cast once: angles in float32 are off by 1e-7 of a turn per token and more.
    """
    exponents_I = torch.arange(0, layout.head_dim, 2, dtype=torch.float64) / layout.head_dim
    angles_TI = torch.outer(torch.arange(tokens, dtype=torch.float64), layout.rope_theta**-exponents_I)
    angles_TE = torch.cat((angles_TI, angles_TI), dim=1)
    return angles_TE.cos().to(device, dtype), angles_TE.sin().to(device, dtype)


def rope(x_BHTE: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor) -> torch.Tensor:
    """x cos + rotate_half(x) sin, where rotate_half(a, b) = (-b, a), a and b the halves of a head."""
    a, b = x_BHTE.chunk(2, dim=-1)
    return x_BHTE * cos_TE + torch.cat((-b, a), dim=-1) * sin_TE
