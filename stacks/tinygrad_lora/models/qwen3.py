"""Qwen3 (arXiv:2505.09388): Llama's block, with RMSNorm over each head of q and of k before they are turned.

Shape suffixes: B sequences, H heads, T tokens, E head_dim.
"""

from __future__ import annotations

from tinygrad import Tensor

from contract.model.layout import RopeLayout
from stacks.tinygrad_lora.models import llama
from stacks.tinygrad_lora.models.section import Block, Hook, Tensors
from stacks.tinygrad_lora.norm import rms_norm


def block(layout: RopeLayout) -> Block:
    """As Llama's; its tensors have q_norm [E], k_norm [E] and head_dim [1] too."""
    return llama.block(layout, _normed)


def scalars(layout: RopeLayout, layer: int | None) -> dict[str, float]:
    """As Llama's, and head_dim."""
    return llama.scalars(layout, layer) | ({} if layer is None else {"head_dim": float(layout.head_dim)})


def _normed(name: str, x_BHTE: Tensor, tensors: Tensors, hook: Hook) -> Tensor:
    tap = f"{name}_norm"
    return hook(tap, rms_norm(x_BHTE, tensors[tap], width_1=tensors["head_dim"], eps_1=tensors["norm_eps"]))
