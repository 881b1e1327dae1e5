"""Qwen2 (arXiv:2407.10671): Llama's graph with biases on q, k and v (the layout names them), and windows in some layers."""

from __future__ import annotations

from contract.model.layout import Qwen2Layout
from stacks.torch_qlora.models.llama import Block
from stacks.torch_qlora.weights import Loader


def block(layout: Qwen2Layout, loader: Loader, layer: int, *, fused: bool) -> Block:
    """A section `layers.N`."""
    return Block(layout, loader, layer, fused=fused, window=layout.window(layer))
