"""The Llama architecture (arXiv:2302.13971): RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.

Three sections, each a module that shows its inner values (contract/worker/taps.py): what a submodule computes is the tap of
the submodule's name, everything else goes through `tap(name, value)`, which answers the value to go on with.

Shape legend: B sequences, T tokens, S tokens that are looked at (= T), D hidden_size, V vocab_size, F intermediate_size,
H num_attention_heads, K num_key_value_heads, E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn

from contract.model.layout import LlamaLayout
from contract.worker.graph import IGNORE_INDEX
from contract.worker.taps import LINEARS
from stacks.torch_qlora.activation import silu
from stacks.torch_qlora.attention import causal_softmax, grouped, scores
from stacks.torch_qlora.embedding import embedding
from stacks.torch_qlora.linear import linear
from stacks.torch_qlora.loss import chunked_cross_entropy, cross_entropy
from stacks.torch_qlora.norm import RmsNorm
from stacks.torch_qlora.rope import rotate

Tap = Callable[[str, torch.Tensor], torch.Tensor]
"""(name, what was computed) -> what to go on with."""


class Source(Protocol):
    """Where a section's weights come from: one at a time, in the graph's dtype, on its device."""

    def tensor(self, name: str) -> nn.Parameter:
        """A frozen weight by its name in contract/worker/graph.py."""

    def linear(self, name: str) -> nn.Module:
        """A frozen linear of a block, with its bias where the layout has one."""


class Embedding(nn.Module):
    """The section `embedding`: each token's row."""

    def __init__(self, layout: LlamaLayout, source: Source) -> None:
        super().__init__()
        self.weight = source.tensor("embedding")

    def forward(self, ids_BT: torch.Tensor, tap: Tap) -> torch.Tensor:
        """x [B, T, D]."""
        return tap("embedding", embedding(ids_BT, self.weight))


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
        q_BHTE = tap("q_rope", rotate(q_BHTE, cos_TE, sin_TE))
        k_BKTE = tap("k_rope", rotate(k_BKTE, cos_TE, sin_TE))
        scores_BHTS = tap("scores", scores(q_BHTE, k_BKTE))
        weights_BHTS = tap("weights", causal_softmax(scores_BHTS))
        context_BTQ = tap("context", grouped(weights_BHTS, v_BKTE).transpose(1, 2).flatten(2))
        x_BTD = tap("attention_residual", x_BTD + self.o_proj(context_BTQ))
        normed_BTD = self.mlp_norm(x_BTD)
        activation_BTF = tap("activation", silu(self.gate_proj(normed_BTD)))
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
