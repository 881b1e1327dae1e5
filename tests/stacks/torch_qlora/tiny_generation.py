"""Tiny graphs of every architecture, opened in this process, for generation: no two sizes alike, windows shorter than the sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from contract.model import layout
from contract.worker import graph as names
from contract.worker.plan import GraphPlan, Lora
from stacks.torch_qlora.cache import KeyValueCache
from stacks.torch_qlora.graph import Graph, GraphBatch

_ROPE: Mapping[str, Any] = {
    "vocab_size": 29, "hidden_size": 20, "intermediate_size": 26, "num_hidden_layers": 2, "num_attention_heads": 6,
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
LORA = Lora(rank=3, alpha=5.0, rank_pattern={"layers.1.q_proj": 2}, alpha_pattern={"o_proj": 4.0})

ORDERS = ((19,), (4, 1, 1, 9, 1, 3), (1,) * 19)
"""Of 19 tokens, how many are computed at once: all, some, each by itself."""

UNIT_RATIO = 2.0**-29
MARGIN = 3
"""As tests/stacks/torch_qlora/test_torch_witness.py has both: what float32's own error says of float64's, and how far two right answers
may lie apart."""


def plan_of(model_type: str, dtype: str = "float64", **more: Any) -> GraphPlan:
    fields = dict(CONFIGS[model_type]) | {"model_type": model_type} | more.pop("layout", {})
    return GraphPlan.model_validate({"layout": layout.read(fields), "dtype": dtype, "lora": LORA} | more)


def weights_of(plan: GraphPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and an adapter whose B is not zero; norms' weights are around one; the head's are large, so that tokens differ."""
    rng = np.random.default_rng(seed)
    shapes = names.weights(plan) | names.adapter(plan)
    return {
        name: (rng.standard_normal(shape) * 0.3 + (1.0 if name.endswith("norm") else 0.0)).astype(np.float32)
        for name, (shape, _) in shapes.items()
    }


def graph_of(model_type: str, dtype: str = "float64", seed: int = 0, **more: Any) -> Graph:
    plan = plan_of(model_type, dtype, **more)
    tensors = weights_of(plan, seed)
    return Graph(plan, tensors, tensors, torch.device("cpu"))


def ids_of(tokens: int, batch: int = 8, seed: int = 7) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 29, (batch, tokens)))


def uncached(graph: Graph, ids_BT: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of a whole pass."""
    with torch.no_grad():
        return graph.logits(graph.hidden(GraphBatch(ids_BT=ids_BT)))


def cached(graph: Graph, ids_BT: torch.Tensor, parts: Sequence[int], *, positions: bool = True) -> torch.Tensor:
    """The same, so many tokens at a time."""
    cache, start, found = KeyValueCache(), 0, []
    with torch.no_grad():
        for part in parts:
            new_BT = ids_BT[:, start : start + part]
            positions_BT = torch.arange(start, start + part).expand(new_BT.shape) if positions else None
            found.append(graph.logits(graph.hidden(GraphBatch(ids_BT=new_BT, positions_BT=positions_BT), cache=cache)))
            start += part
    assert start == ids_BT.shape[1]
    return torch.cat(found, dim=1)


def allowed(model_type: str, ids_BT: torch.Tensor, whole: torch.Tensor, **more: Any) -> float:
    """How far two right answers in float64 may lie apart: thrice what float32's own error, of all the ORDERS, says of float64's."""
    single = graph_of(model_type, "float32", **more)
    errors = [float((cached(single, ids_BT, order).double() - whole).abs().max()) for order in ORDERS]
    return MARGIN * UNIT_RATIO * max(errors)


def greedy(graph: Graph, prompt: Sequence[int], new: int) -> list[int]:
    """One token after the other, each from a whole pass over all before it; of equal logits the lowest id."""
    ids = list(prompt)
    for _ in range(new):
        logits_V = uncached(graph, torch.tensor([ids]))[0, -1].numpy()
        ids.append(int(np.flatnonzero(logits_V == logits_V.max())[0]))
    return ids[len(prompt) :]
