"""Qwen3 (arXiv:2505.09388): Llama's graph with a norm of each head's queries and keys, and windows in some layers."""

from __future__ import annotations

from contract.model.layout import Qwen3Layout
from stacks.torch_qlora.models.llama import Block
from stacks.torch_qlora.weights import Loader


def block(layout: Qwen3Layout, loader: Loader, layer: int, *, fused: bool) -> Block:
    """A section `layers.N`; RMSNorm over head_dim, before the rotation."""
    return Block(layout, loader, layer, fused=fused, window=layout.window(layer), head_norms=True)
