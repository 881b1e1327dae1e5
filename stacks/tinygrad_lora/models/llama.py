"""Llama: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU (arXiv:2302.13971), section by section.

A section is a function of the residual stream that enters it, of its tensors by name, and of a hook that sees each tap
(contract.worker.taps) and may put another value in its place. Sizes that divide, and rms_norm_eps, are tensors of shape [1]: a
number would become part of the kernel, rounded as its reciprocal and compiled anew for each value.

Shape suffixes: B sequences, T tokens, S tokens that are looked at (= T), D hidden_size, F intermediate_size, V vocab_size,
H num_attention_heads, K num_key_value_heads, E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tinygrad import Tensor

from contract.model.layout import LlamaLayout
from stacks.tinygrad_lora import attention, rope
from stacks.tinygrad_lora.activation import silu
from stacks.tinygrad_lora.hook import Hook
from stacks.tinygrad_lora.linear import frozen_linear
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.loss import next_token_loss
from stacks.tinygrad_lora.norm import rms_norm


def rope_tables(layout: LlamaLayout, tokens: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """cos_TE and sin_TE of the first tokens' angles, in `dtype`."""
    return rope.tables(np.arange(tokens), rope.frequencies(layout.head_dim, layout.rope_theta, layout.rope_scaling), dtype)


def scalars(layout: LlamaLayout) -> dict[str, float]:
    """The numbers of the graph that its sections take as tensors of shape [1], beside LoRA's `scaling`."""
    return {"hidden_size": layout.hidden_size, "rms_norm_eps": layout.rms_norm_eps, "sqrt_head_dim": layout.head_dim**0.5}


def out_features(layout: LlamaLayout) -> dict[str, int]:
    """O of each linear of a block."""
    q, n = layout.num_attention_heads * layout.head_dim, layout.num_key_value_heads * layout.head_dim
    d, f = layout.hidden_size, layout.intermediate_size
    return {"q_proj": q, "k_proj": n, "v_proj": n, "o_proj": d, "gate_proj": f, "up_proj": f, "down_proj": d}


def block(x_BTD: Tensor, tensors: Mapping[str, Tensor], linears: Linears, hook: Hook, layout: LlamaLayout) -> Tensor:
    """h = x + Attention(RMSNorm(x)); output = h + SwiGLU(RMSNorm(h)).

    Args:
        tensors: attention_norm [D], mlp_norm [D], rope.cos and rope.sin [T, E], and the `scalars`.
        linears: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    """
    attended_BTD = _attention(hook("attention_norm", _norm(x_BTD, "attention_norm", tensors)), tensors, linears, hook, layout)
    h_BTD = hook("attention_residual", x_BTD + attended_BTD)
    norm_BTD = hook("mlp_norm", _norm(h_BTD, "mlp_norm", tensors))
    gate_BTF, up_BTF = linears("gate_proj", norm_BTD), linears("up_proj", norm_BTD)
    activation_BTF = hook("activation", silu(gate_BTF))
    return hook("output", h_BTD + linears("down_proj", hook("gated", activation_BTF * up_BTF)))


def head(x_BTD: Tensor, tensors: Mapping[str, Tensor], hook: Hook) -> None:
    """logits = RMSNorm(x) head^T, and where there are labels the mean of -log softmax(logits[b, t])[labels[b, t + 1]].

    Args:
        tensors: final_norm [D], lm_head [V, D] (the embedding, where they are tied), the `scalars`, and what
            `stacks.tinygrad_lora.loss.next_tokens` makes of labels.
    """
    norm_BTD = hook("final_norm", _norm(x_BTD, "final_norm", tensors))
    logits_BTV = hook("logits", frozen_linear(norm_BTD, tensors["lm_head"]))
    if "next_token" in tensors:
        hook("loss", next_token_loss(logits_BTV, tensors["next_token"], tensors["counted"], tensors["count"]))


def _norm(x_BTD: Tensor, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    return rms_norm(x_BTD, tensors[name], width_1=tensors["hidden_size"], eps_1=tensors["rms_norm_eps"])


def _attention(norm_BTD: Tensor, tensors: Mapping[str, Tensor], linears: Linears, hook: Hook, layout: LlamaLayout) -> Tensor:
    """o_proj(softmax(q k^T / sqrt(head_dim)) v), causal; head h looks at key head h // G (arXiv:2305.13245)."""
    B, T, _ = (int(size) for size in norm_BTD.shape)
    H, K, E = layout.num_attention_heads, layout.num_key_value_heads, layout.head_dim
    q_BTQ, k_BTN, v_BTN = (linears(name, norm_BTD) for name in ("q_proj", "k_proj", "v_proj"))
    q_BHTE = hook("q_rope", rope.rotate(_heads(q_BTQ, H), tensors["rope.cos"], tensors["rope.sin"]))
    k_BKTE = hook("k_rope", rope.rotate(_heads(k_BTN, K), tensors["rope.cos"], tensors["rope.sin"]))
    scores_BHTS = hook("scores", attention.scores(q_BHTE, k_BKTE, sqrt_head_dim_1=tensors["sqrt_head_dim"]))
    weights_BHTS = hook("weights", attention.masked_softmax(scores_BHTS, attention.visible(T)))
    context_BHTE = attention.context(weights_BHTS, _heads(v_BTN, K))
    return linears("o_proj", hook("context", context_BHTE.transpose(1, 2).reshape(B, T, H * E)))


def _heads(x_BTQ: Tensor, heads: int) -> Tensor:
    B, T, Q = (int(size) for size in x_BTQ.shape)
    return x_BTQ.reshape(B, T, heads, Q // heads).transpose(1, 2)
