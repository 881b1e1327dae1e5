"""Mistral (arXiv:2310.06825): Llama's graph, where in every layer a token sees the `sliding_window` last ones."""

from __future__ import annotations

from contract.model.layout import MistralLayout
from stacks.torch_qlora.models.llama import Block
from stacks.torch_qlora.weights import Loader


def block(layout: MistralLayout, loader: Loader, layer: int, *, fused: bool) -> Block:
    """A section `layers.N`."""
    return Block(layout, loader, layer, fused=fused, window=layout.sliding_window)
