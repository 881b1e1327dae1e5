"""A small graph's plan: D 14, V 41, F 22, H 6, K 2, E 4, Q 24, N 8, R 3, B 5, T 7, so that each dimension is another number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.model.layout import GPT2Layout, Layout, LlamaLayout, MistralLayout, Qwen2Layout, Qwen3Layout, RopeScaling
from contract.worker import graph
from contract.worker.graph import Invalid
from contract.worker.plan import GraphPlan, Lora

B, T = 5, 7
LORA = Lora(rank=3, alpha=5)


def layout(**changed: Any) -> LlamaLayout:
    fields = {
        "vocab_size": 41, "hidden_size": 14, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 9, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    }  # fmt: skip
    return LlamaLayout(**fields | changed)


def plan(*, targets: tuple[str, ...] = ("k_proj", "down_proj"), dtype: str = "float64", **changed: Any) -> GraphPlan:
    own = {name: changed.pop(name) for name in ("sections", "base", "paths", "lora", "graph") if name in changed}
    return GraphPlan.model_validate({"layout": layout(**changed), "dtype": dtype, "lora": Lora(rank=3, alpha=5, targets=targets), **own})


_OWN = ("model_type", "rope_scaling", "attention_bias", "mlp_bias")
_SIZES = {name: getattr(layout(), name) for name in LlamaLayout.model_fields if name not in _OWN}

GPT2 = GPT2Layout(
    vocab_size=41, hidden_size=12, intermediate_size=22, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=3, head_dim=4,
    max_position_embeddings=9, tie_word_embeddings=True, layer_norm_epsilon=1e-4, activation_function="gelu", scale_attn_weights=False,
    scale_attn_by_inverse_layer_idx=True, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
)  # fmt: skip
OTHERS: tuple[Layout, ...] = (
    GPT2,
    MistralLayout(**_SIZES, sliding_window=3),
    Qwen2Layout(**_SIZES, sliding_window=4, layer_types=("sliding_attention", "full_attention")),
    Qwen3Layout(**_SIZES, attention_bias=True, rope_scaling=RopeScaling(rope_type="linear", factor=2.0)),
)
"""Every other architecture, with options."""


def other_plan(others: Layout, *, lora: Lora = LORA, **fields: Any) -> GraphPlan:
    """A plan of another architecture."""
    return GraphPlan.model_validate({"layout": others, "dtype": "float64", "lora": lora, **fields})


def refuses(message: str, what: Any, *arguments: Any) -> str:
    with pytest.raises(Invalid, match=message) as caught:
        what(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def ids(shape: tuple[int, ...] = (B, T), value: int = 3) -> np.ndarray:
    return np.full(shape, value, np.int64)


def labels(value: int = 3) -> np.ndarray:
    only_one = np.full((B, T), graph.IGNORE_INDEX, np.int64)
    only_one[2, 4] = value
    return only_one


FIRST_ONLY = np.where(np.arange(T) == 0, 3, graph.IGNORE_INDEX) * np.ones((B, 1), np.int64)

BAD_LABELS = [
    (labels(41), "labels lie in 41 .. 41, allowed: 0 .. 40, or -100"),
    (labels(-1), "labels lie in -1 .. -1, allowed: 0 .. 40, or -100"),
    (labels(graph.IGNORE_INDEX), r"no label after the first token of a sequence counts \(all are -100\), so the mean is over nothing"),
    (FIRST_ONLY, "no label after the first token"),
]
"""Labels of the right shape that are refused, and what is said."""
