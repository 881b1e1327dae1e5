"""The modules of a layout's sections, from the architecture's own file."""

from __future__ import annotations

from torch import nn

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, MistralLayout, Qwen2Layout
from stacks.torch_qlora.models import gpt2, llama, mistral, qwen2, qwen3
from stacks.torch_qlora.weights import Loader


def embedding(layout: Layout, loader: Loader) -> gpt2.Embedding | llama.Embedding:
    """The section `embedding`."""
    return gpt2.Embedding(loader) if isinstance(layout, GPT2Layout) else llama.Embedding(loader)


def block(layout: Layout, loader: Loader, layer: int, *, fused: bool) -> nn.Module:
    """A section `layers.N`.

    Args:
        fused: attention as one kernel.
    """
    if isinstance(layout, GPT2Layout):
        return gpt2.Block(layout, loader, layer, fused=fused)
    if isinstance(layout, LlamaLayout):
        return llama.block(layout, loader, layer, fused=fused)
    if isinstance(layout, MistralLayout):
        return mistral.block(layout, loader, layer, fused=fused)
    if isinstance(layout, Qwen2Layout):
        return qwen2.block(layout, loader, layer, fused=fused)
    return qwen3.block(layout, loader, layer, fused=fused)


def final_norm(layout: Layout, loader: Loader) -> nn.Module:
    """The norm of the section `head`."""
    return gpt2.final_norm(layout, loader) if isinstance(layout, GPT2Layout) else llama.final_norm(layout, loader)
