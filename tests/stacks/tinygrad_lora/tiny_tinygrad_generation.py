"""Tiny models of every architecture on a device, for generation: no two sizes alike, windows shorter than the sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from contract.model import layout
from contract.worker import graph as requests
from contract.worker.plan import GraphPlan, Lora
from stacks.tinygrad_lora import weights
from stacks.tinygrad_lora.held import Held, hold
from stacks.tinygrad_lora.weights import Weights

VOCABULARY = 29
_ROPE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 20, "intermediate_size": 26, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 10, "max_position_embeddings": 40, "rms_norm_eps": 0.1, "rope_theta": 50.0,
    "tie_word_embeddings": False,
}  # fmt: skip
_WINDOWS: Mapping[str, Any] = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_ROPE, "attention_bias": True, "mlp_bias": True},
    "mistral": {**_ROPE, "sliding_window": 5},
    "qwen2": {**{name: value for name, value in _ROPE.items() if name != "head_dim"}, "hidden_size": 24, **_WINDOWS},
    "qwen3": {**_ROPE, **_WINDOWS},
    "gpt2": {"vocab_size": 29, "n_embd": 24, "n_layer": 2, "n_head": 6, "n_positions": 40, "n_inner": 34, "layer_norm_epsilon": 0.1},
}
LORA = Lora(rank=3, alpha=5.0, rslora=True, targets=("q_proj", "v_proj", "o_proj"))


def plan_of(model_type: str, dtype: str = "float64", **more: Any) -> GraphPlan:
    fields = dict(CONFIGS[model_type]) | {"model_type": model_type}
    return GraphPlan.model_validate({"layout": layout.read(fields), "dtype": dtype, "lora": LORA} | more)


def tensors_of_plan(plan: GraphPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and an adapter whose B is not zero; norms' weights are around one."""
    rng = np.random.default_rng(seed)
    shapes = requests.weights(plan) | requests.adapter(plan)
    return {
        name: (rng.standard_normal(shape) * 0.3 + (1.0 if name.endswith("norm") else 0.0)).astype(np.float32)
        for name, (shape, _) in shapes.items()
    }


def held(model_type: str, dtype: str = "float64", **more: Any) -> Held:
    plan = plan_of(model_type, dtype, **more)
    tensors = tensors_of_plan(plan)
    adapter = {name: tensors[name] for name in requests.adapter(plan)}
    return hold(plan, Weights(plan, weights.of_arrays(tensors), "CPU"), adapter, "CPU")
