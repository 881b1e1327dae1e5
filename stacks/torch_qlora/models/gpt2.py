"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm, attention without rotation, a plain MLP with GELU.

The checkpoint's fused c_attn comes as q_proj, k_proj and v_proj, its [in, out] weights as [out, in] (contract/model/keymap.py).

Shape legend: B sequences, T tokens, D hidden_size, P max_position_embeddings, F intermediate_size, H = K heads, E head_dim, Q = H E.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from contract.model.layout import GPT2Layout
from stacks.torch_qlora.activation import gelu
from stacks.torch_qlora.embedding import embedding
from stacks.torch_qlora.models.attention import Attention, split_heads
from stacks.torch_qlora.models.section import Pass
from stacks.torch_qlora.norm import LayerNorm
from stacks.torch_qlora.taps import Tap
from stacks.torch_qlora.weights import Loader


class Embedding(nn.Module):
    """The section `embedding`: each token's row, and the row of where it stands."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.weight, self.positions = loader.tensor("embedding"), loader.tensor("position_embedding")

    def forward(self, ids_BT: torch.Tensor, positions_BT: torch.Tensor | None, tap: Tap) -> torch.Tensor:
        """x [B, T, D]; without positions tokens stand at 0 .. T - 1."""
        x_BTD = tap("embedding", embedding(ids_BT, self.weight))
        rows = self.positions[: ids_BT.shape[1]] if positions_BT is None else embedding(positions_BT, self.positions)
        return tap("embedded", x_BTD + tap("position_embedding", rows))


class Block(nn.Module):
    """A section `layers.N`: attention, then the MLP, each normed before and added after."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    o_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, layout: GPT2Layout, loader: Loader, layer: int, *, fused: bool) -> None:
        super().__init__()
        section, self.head_dim = f"layers.{layer}", layout.head_dim
        divisor = math.sqrt(layout.head_dim) if layout.scale_attn_weights else 1.0
        divisor *= layer + 1 if layout.scale_attn_by_inverse_layer_idx else 1
        self.attend = Attention(layer=layer, fused=fused, divisor=divisor)
        self.approximate = "tanh" if layout.activation_function == "gelu_new" else "none"
        self.attention_norm = norm(layout, loader, f"{section}.attention_norm")
        self.mlp_norm = norm(layout, loader, f"{section}.mlp_norm")
        for name in layout.linears:
            self.add_module(name, loader.linear(f"{section}.{name}"))

    def forward(self, x_BTD: torch.Tensor, shared: Pass, tap: Tap) -> torch.Tensor:
        """x + attention(norm(x)), then x + mlp(norm(x)), [B, T, D]."""
        normed_BTD = self.attention_norm(x_BTD)
        q_BHTE = split_heads(self.q_proj(normed_BTD), self.head_dim)
        k_BKTE = split_heads(self.k_proj(normed_BTD), self.head_dim)
        v_BKTE = split_heads(self.v_proj(normed_BTD), self.head_dim)
        context_BTQ = self.attend(q_BHTE, k_BKTE, v_BKTE, shared.visible, shared.cache, tap)
        x_BTD = tap("attention_residual", x_BTD + self.o_proj(context_BTQ))
        activation_BTF = tap("activation", gelu(self.up_proj(self.mlp_norm(x_BTD)), approximate=self.approximate))
        return tap("output", x_BTD + self.down_proj(activation_BTF))


def norm(layout: GPT2Layout, loader: Loader, name: str) -> LayerNorm:
    """One of the LayerNorms, by its weight's name."""
    return LayerNorm(loader.tensor(name), loader.tensor(f"{name}.bias"), layout.layer_norm_epsilon)


def final_norm(layout: GPT2Layout, loader: Loader) -> LayerNorm:
    """The head's norm."""
    return norm(layout, loader, "final_norm")
