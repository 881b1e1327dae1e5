"""The Llama architecture (arXiv:2302.13971): RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU.

Each section is a module that shows its inner values (contract/worker/taps.py): what a submodule computes is the tap of the
submodule's name, everything else goes through `tap(name, value)`, which answers the value to go on with.

Shape legend: B sequences, T tokens, D hidden_size, F intermediate_size, H num_attention_heads, K num_key_value_heads, E head_dim,
Q = H E, N = K E.
"""

from __future__ import annotations

import torch
from torch import nn

from contract.model.layout import LlamaLayout, RopeLayout
from stacks.torch_qlora.activation import silu
from stacks.torch_qlora.embedding import embedding
from stacks.torch_qlora.fused_elementwise import fused_swiglu
from stacks.torch_qlora.models.attention import Attention, split_heads
from stacks.torch_qlora.models.section import Pass
from stacks.torch_qlora.norm import RmsNorm
from stacks.torch_qlora.rope import rotate
from stacks.torch_qlora.taps import Tap
from stacks.torch_qlora.weights import Loader


class Embedding(nn.Module):
    """The section `embedding`: each token's row."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.weight = loader.tensor("embedding")

    def forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor | None, tap: Tap) -> torch.Tensor:
        """x [B, T, D]; where a token stands is RoPE's to say."""
        return tap("embedding", embedding(ids_BT, self.weight))


class Block(nn.Module):
    """A section `layers.N`: attention, then the gated MLP, each normed before and added after.

    Args:
        window: how many tokens a token sees; None: all before it.
        head_norms: q and k are normed head by head before they are turned.
    """

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(
        self, layout: RopeLayout, loader: Loader, layer: int, *, fused: bool, window: int | None = None, head_norms: bool = False
    ) -> None:
        super().__init__()
        section, self.head_dim, self.fused_elementwise = f"layers.{layer}", layout.head_dim, False
        self.attend = Attention(layer=layer, fused=fused, window=window)

        def norm(name: str) -> RmsNorm:
            return RmsNorm(loader.tensor(f"{section}.{name}"), layout.rms_norm_eps)

        self.attention_norm, self.mlp_norm = norm("attention_norm"), norm("mlp_norm")
        self.q_norm = norm("q_norm") if head_norms else None
        self.k_norm = norm("k_norm") if head_norms else None
        for name in layout.linears:
            self.add_module(name, loader.linear(f"{section}.{name}"))

    def forward(self, x_BTD: torch.Tensor, shared: Pass, tap: Tap) -> torch.Tensor:
        """x + attention(norm(x)), then x + mlp(norm(x)), [B, T, D]."""
        assert shared.rope is not None
        normed_BTD = self.attention_norm(x_BTD)
        q_BHTE = split_heads(self.q_proj(normed_BTD), self.head_dim)
        k_BKTE = split_heads(self.k_proj(normed_BTD), self.head_dim)
        v_BKTE = split_heads(self.v_proj(normed_BTD), self.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHTE, k_BKTE = self.q_norm(q_BHTE), self.k_norm(k_BKTE)
        q_BHTE = tap("q_rope", rotate(q_BHTE, *shared.rope))
        k_BKTE = tap("k_rope", rotate(k_BKTE, *shared.rope))
        context_BTQ = self.attend(q_BHTE, k_BKTE, v_BKTE, shared.visible, shared.cache, tap)
        x_BTD = tap("attention_residual", x_BTD + self.o_proj(context_BTQ))
        normed_BTD = self.mlp_norm(x_BTD)
        if self.fused_elementwise:
            gated_BTF = tap("gated", fused_swiglu(self.gate_proj(normed_BTD), self.up_proj(normed_BTD)))
        else:
            activation_BTF = tap("activation", silu(self.gate_proj(normed_BTD)))
            gated_BTF = tap("gated", activation_BTF * self.up_proj(normed_BTD))
        return tap("output", x_BTD + self.down_proj(gated_BTF))


def final_norm(layout: RopeLayout, loader: Loader) -> RmsNorm:
    """The head's norm."""
    return RmsNorm(loader.tensor("final_norm"), layout.rms_norm_eps)


def block(layout: LlamaLayout, loader: Loader, layer: int, *, fused: bool) -> Block:
    """Llama's block: no windows, no norms of heads."""
    return Block(layout, loader, layer, fused=fused)
