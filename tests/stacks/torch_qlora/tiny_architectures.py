"""Tiny models of every architecture and option, in which no two sizes are the same; they look at fewer tokens than the batch has."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, MistralLayout, Qwen2Layout, Qwen3Layout, RopeScaling
from contract.worker.plan import GraphPlan, Lora

TOKENS, BATCH = 11, 8

ROPE: dict[str, Any] = {
    "vocab_size": 31, "hidden_size": 20, "intermediate_size": 26, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 16, "rms_norm_eps": 0.05, "rope_theta": 40.0, "tie_word_embeddings": False,
}  # fmt: skip
LINEAR = RopeScaling(rope_type="linear", factor=2.5)
LLAMA3 = RopeScaling(rope_type="llama3", factor=4.0, low_freq_factor=0.5, high_freq_factor=3.0, original_max_position_embeddings=12)
"""One of the three frequencies of a head of 6 is left, one blended and one slowed."""


def gpt2(**changed: Any) -> GPT2Layout:
    fields = {
        "vocab_size": 31, "hidden_size": 18, "intermediate_size": 26, "num_hidden_layers": 2, "num_attention_heads": 3,
        "num_key_value_heads": 3, "head_dim": 6, "max_position_embeddings": 16, "tie_word_embeddings": True, "layer_norm_epsilon": 0.05,
        "activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "attn_pdrop": 0.0,
        "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    }  # fmt: skip
    return GPT2Layout(**fields | changed)


BIASES = {"attention_bias": True, "mlp_bias": True}
NONE = {"attention_bias": False, "mlp_bias": False}

LAYOUTS: dict[str, Layout] = {
    "llama": LlamaLayout(**ROPE, **BIASES),
    "llama_linear": LlamaLayout(**ROPE | NONE | {"rope_scaling": LINEAR, "tie_word_embeddings": True}),
    "llama_llama3": LlamaLayout(**ROPE | NONE | {"rope_scaling": LLAMA3, "mlp_bias": True}),
    "mistral": MistralLayout(**ROPE),
    "mistral_window": MistralLayout(**ROPE, sliding_window=4),
    "qwen2": Qwen2Layout(**ROPE | {"tie_word_embeddings": True}),
    "qwen2_window_from": Qwen2Layout(**ROPE, sliding_window=3, max_window_layers=1),
    "qwen2_window_types": Qwen2Layout(
        **ROPE, sliding_window=5, layer_types=("sliding_attention", "full_attention"), rope_scaling=LLAMA3
    ),
    "qwen3": Qwen3Layout(**ROPE, attention_bias=False),
    "qwen3_bias_window": Qwen3Layout(**ROPE, attention_bias=True, sliding_window=4, max_window_layers=1, rope_scaling=LINEAR),
    "gpt2": gpt2(),
    "gpt2_erf_untied": gpt2(activation_function="gelu", tie_word_embeddings=False),
    "gpt2_unscaled": gpt2(scale_attn_weights=False),
    "gpt2_inverse": gpt2(scale_attn_by_inverse_layer_idx=True, num_hidden_layers=3),
    "gpt2_unscaled_inverse": gpt2(scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
}  # fmt: skip
ONE_EACH = ("llama", "mistral_window", "qwen2_window_types", "qwen3_bias_window", "gpt2_unscaled_inverse")
"""One of each architecture, with what it has of its own."""

LORA = Lora(
    rank=3, alpha=7.0, rslora=True, rank_pattern={"q_proj": 2, "layers.1.down_proj": 4},
    alpha_pattern={"layers.0.v_proj": 5.0, "up_proj": 2.0},
)  # fmt: skip


def plan(name: str, dtype: str = "float64", **others: Any) -> GraphPlan:
    """A tiny model's plan; LoRA on every linear, ranks and alphas that differ."""
    return GraphPlan.model_validate({"layout": LAYOUTS[name], "dtype": dtype, "lora": LORA, **others})


def batch(seed: int = 1) -> dict[str, np.ndarray]:
    """ids with a true token 0, and labels of which a prompt, an end and a piece in the middle don't count."""
    ids = np.random.default_rng(seed).integers(0, ROPE["vocab_size"], (BATCH, TOKENS))
    ids[0, 2] = 0
    labels = ids.copy()
    labels[0, :4], labels[1, -2:], labels[1, 5] = -100, -100, -100
    return {"ids": ids, "labels": labels}
