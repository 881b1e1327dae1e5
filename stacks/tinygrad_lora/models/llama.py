"""Llama: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU (arXiv:2302.13971), section by section.

Shape suffixes: B sequences, T tokens, D hidden_size, F intermediate_size, V vocab_size, H num_attention_heads, K num_key_value_heads,
E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from tinygrad import Tensor

from contract.model.layout import RopeLayout
from stacks.tinygrad_lora import rope
from stacks.tinygrad_lora.activation import silu
from stacks.tinygrad_lora.linear import frozen_linear
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.models.attention import attend, heads, turned
from stacks.tinygrad_lora.models.section import TOKENS, Block, Hook, Pass, Tensors
from stacks.tinygrad_lora.norm import rms_norm

Normed = Callable[[str, Tensor, Tensors, Hook], Tensor]
"""(q or k, its heads [B, H, T, E], tensors, hook) -> what RoPE turns."""


def embed(tensors: Tensors, hook: Hook) -> Tensor:
    """The embedding's rows, as they are."""
    return hook("embedding", tensors[TOKENS])


def block(layout: RopeLayout, normed: Normed | None = None) -> Block:
    """h = x + Attention(RMSNorm(x)); output = h + SwiGLU(RMSNorm(h)).

    Its tensors: attention_norm [D], mlp_norm [D], the scalars; its linears: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.

    Args:
        normed: a norm of each head before it is turned, where the architecture has one.
    """

    def function(x_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook, layer: int, shared: Pass) -> Tensor:
        norm_BTD = hook("attention_norm", norm(x_BTD, "attention_norm", tensors))
        context_BTQ = _context(norm_BTD, tensors, linears, hook, layer, shared, layout=layout, normed=normed)
        h_BTD = hook("attention_residual", x_BTD + linears("o_proj", context_BTQ))
        norm_BTD = hook("mlp_norm", norm(h_BTD, "mlp_norm", tensors))
        gate_BTF, up_BTF = linears("gate_proj", norm_BTD), linears("up_proj", norm_BTD)
        activation_BTF = hook("activation", silu(gate_BTF))
        return hook("output", h_BTD + linears("down_proj", hook("gated", activation_BTF * up_BTF)))

    return function


def finish(x_BTD: Tensor, tensors: Tensors, hook: Hook) -> Tensor:
    """RMSNorm(x)."""
    return hook("final_norm", norm(x_BTD, "final_norm", tensors))


def project(norm_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook) -> Tensor:
    """logits = norm head^T; lm_head [V, D] is the embedding, where they are tied."""
    return hook("logits", frozen_linear(norm_BTD, tensors["lm_head"]))


def norm(x_BTD: Tensor, name: str, tensors: Tensors) -> Tensor:
    """RMSNorm over the whole width, with the weight `name`."""
    return rms_norm(x_BTD, tensors[name], width_1=tensors["hidden_size"], eps_1=tensors["norm_eps"])


def scalars(layout: RopeLayout, layer: int | None) -> dict[str, float]:
    """The numbers of a block, or of the head (None)."""
    numbers = {"hidden_size": float(layout.hidden_size), "norm_eps": layout.rms_norm_eps}
    return numbers if layer is None else numbers | {"score_divisor": layout.head_dim**0.5}


def places(layout: RopeLayout, dtype: str) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """positions -> rope.cos, rope.sin [.., T, E]."""
    return partial(_places, rope.frequencies(layout.head_dim, layout.rope_theta, layout.rope_scaling), dtype)


def _places(frequencies_F: np.ndarray, dtype: str, positions: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(("rope.cos", "rope.sin"), rope.tables(positions, frequencies_F, dtype), strict=True))


def _context(
    norm_BTD: Tensor, tensors: Tensors, linears: Linears, hook: Hook, layer: int, shared: Pass, *, layout: RopeLayout, normed: Normed | None
) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v, [B, T, Q]; head h looks at key head h // (H / K) (arXiv:2305.13245)."""
    H, K = layout.num_attention_heads, layout.num_key_value_heads
    q_BTQ, k_BTN, v_BTN = (linears(name, norm_BTD) for name in ("q_proj", "k_proj", "v_proj"))
    q_BHTE, k_BKTE = heads(q_BTQ, H), heads(k_BTN, K)
    if normed is not None:
        q_BHTE, k_BKTE = normed("q", q_BHTE, tensors, hook), normed("k", k_BKTE, tensors, hook)
    q_BHTE, k_BKTE = hook("q_rope", turned(q_BHTE, shared)), hook("k_rope", turned(k_BKTE, shared))
    return attend(q_BHTE, k_BKTE, heads(v_BTN, K), tensors, hook, layer, shared)
