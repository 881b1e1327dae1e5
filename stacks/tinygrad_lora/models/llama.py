"""Llama: RMSNorm, rotate-half RoPE, grouped-query attention, SwiGLU (arXiv:2302.13971), section by section.

A section is a function of the residual stream that enters it, of its tensors by name, and of a hook that sees each tap
(contract.worker.taps) and may put another value in its place. Sizes that divide, and rms_norm_eps, are tensors of shape [1]: a
number would become part of the kernel, rounded as its reciprocal and compiled anew for each value.

Shape suffixes: B sequences, T tokens, S tokens that are looked at (= T), D hidden_size, F intermediate_size, V vocab_size,
H num_attention_heads, K num_key_value_heads, G = H / K, E head_dim, Q = H E, N = K E.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tinygrad import Tensor

from contract.model.layout import LlamaLayout
from stacks.tinygrad_lora.elementary import exp, sigmoid
from stacks.tinygrad_lora.hook import Hook
from stacks.tinygrad_lora.linear import frozen_linear, matmul
from stacks.tinygrad_lora.lora import Linears
from stacks.tinygrad_lora.loss import next_token_loss


def rope_tables(layout: LlamaLayout, tokens: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """cos_TE and sin_TE of the angles t theta^(-2 i / head_dim), i = 0 .. head_dim / 2 - 1, twice over (arXiv:2104.09864).

    In float64 on the host, cast once: tinygrad's sin is 1.9e-6 off at an angle of 8,192.
    """
    frequencies = layout.rope_theta ** (-np.arange(0, layout.head_dim, 2, dtype=np.float64) / layout.head_dim)
    angles_TE = np.tile(np.outer(np.arange(tokens, dtype=np.float64), frequencies), 2)
    return np.cos(angles_TE).astype(dtype), np.sin(angles_TE).astype(dtype)


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
    attended_BTD = _attention(hook("attention_norm", _rms_norm(x_BTD, tensors["attention_norm"], tensors)), tensors, linears, hook, layout)
    h_BTD = hook("attention_residual", x_BTD + attended_BTD)
    norm_BTD = hook("mlp_norm", _rms_norm(h_BTD, tensors["mlp_norm"], tensors))
    gate_BTF, up_BTF = linears("gate_proj", norm_BTD), linears("up_proj", norm_BTD)
    activation_BTF = hook("activation", gate_BTF * sigmoid(gate_BTF))
    return hook("output", h_BTD + linears("down_proj", hook("gated", activation_BTF * up_BTF)))


def head(x_BTD: Tensor, tensors: Mapping[str, Tensor], hook: Hook) -> None:
    """logits = RMSNorm(x) head^T, and where there are labels the mean of -log softmax(logits[b, t])[labels[b, t + 1]].

    Args:
        tensors: final_norm [D], lm_head [V, D] (the embedding, where they are tied), the `scalars`, and what
            `stacks.tinygrad_lora.loss.next_tokens` makes of labels.
    """
    norm_BTD = hook("final_norm", _rms_norm(x_BTD, tensors["final_norm"], tensors))
    logits_BTV = hook("logits", frozen_linear(norm_BTD, tensors["lm_head"]))
    if "next_token" in tensors:
        hook("loss", next_token_loss(logits_BTV, tensors["next_token"], tensors["counted"], tensors["count"]))


def _rms_norm(x_BTD: Tensor, weight_D: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv:1910.07467)."""
    mean_square_BT1 = (x_BTD * x_BTD).sum(axis=-1, keepdim=True, dtype=x_BTD.dtype) / tensors["hidden_size"]
    return x_BTD / (mean_square_BT1 + tensors["rms_norm_eps"]).sqrt() * weight_D


def _attention(norm_BTD: Tensor, tensors: Mapping[str, Tensor], linears: Linears, hook: Hook, layout: LlamaLayout) -> Tensor:
    """o_proj(softmax(q k^T / sqrt(head_dim)) v), causal; head h looks at key head h // G (arXiv:2305.13245)."""
    B, T, _ = (int(size) for size in norm_BTD.shape)
    H, K, E = layout.num_attention_heads, layout.num_key_value_heads, layout.head_dim
    q_BTQ, k_BTN, v_BTN = (linears(name, norm_BTD) for name in ("q_proj", "k_proj", "v_proj"))
    q_BHTE = hook("q_rope", _rope(_heads(q_BTQ, H), tensors["rope.cos"], tensors["rope.sin"]))
    k_BKTE = hook("k_rope", _rope(_heads(k_BTN, K), tensors["rope.cos"], tensors["rope.sin"]))
    q_BKGTE, k_BK1SE, v_BK1SE = q_BHTE.reshape(B, K, H // K, T, E), k_BKTE.unsqueeze(2), _heads(v_BTN, K).unsqueeze(2)
    scores_BKGTS = matmul(q_BKGTE, k_BK1SE.transpose(-1, -2)) / tensors["sqrt_head_dim"]
    weights_BHTS = hook("weights", _causal_softmax(hook("scores", scores_BKGTS.reshape(B, H, T, T))))
    context_BHTE = matmul(weights_BHTS.reshape(B, K, H // K, T, T), v_BK1SE).reshape(B, H, T, E)
    return linears("o_proj", hook("context", context_BHTE.transpose(1, 2).reshape(B, T, H * E)))


def _heads(x_BTQ: Tensor, heads: int) -> Tensor:
    B, T, Q = (int(size) for size in x_BTQ.shape)
    return x_BTQ.reshape(B, T, heads, Q // heads).transpose(1, 2)


def _rope(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin; rotate_half(a, b) = (-b, a), halves of a head."""
    half = int(x_BHTE.shape[-1]) // 2
    rotated_BHTE = (-x_BHTE[..., half:]).cat(x_BHTE[..., :half], dim=-1)
    return x_BHTE * cos_TE + rotated_BHTE * sin_TE


def _causal_softmax(scores_BHTS: Tensor) -> Tensor:
    """exp(score) over its sum, over s <= t; exactly 0 where s > t, whatever the score there."""
    T = int(scores_BHTS.shape[-1])
    seen_TS = Tensor.arange(T).reshape(T, 1) >= Tensor.arange(T).reshape(1, T)
    maximum_BHT1 = seen_TS.where(scores_BHTS, -float("inf")).max(axis=-1, keepdim=True).detach()
    # 0 and not -inf where s > t: exp's derivative is its value, and 0 * inf is no zero
    exp_BHTS = seen_TS.where(exp(seen_TS.where(scores_BHTS - maximum_BHT1, 0)), 0)
    return exp_BHTS / exp_BHTS.sum(axis=-1, keepdim=True, dtype=scores_BHTS.dtype)
