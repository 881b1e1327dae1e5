"""A small graph's plan: D 14, V 41, F 22, H 6, K 2, E 4, Q 24, N 8, R 3, B 5, T 7, so that each dimension is another number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.model.layout import LlamaLayout
from contract.worker import graph
from contract.worker.graph import Invalid
from contract.worker.plan import GraphPlan, Lora

B, T = 5, 7


def layout(**changed: Any) -> LlamaLayout:
    fields = {
        "vocab_size": 41, "hidden_size": 14, "intermediate_size": 22, "num_hidden_layers": 2, "num_attention_heads": 6,
        "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 9, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": False,
    }  # fmt: skip
    return LlamaLayout(**fields | changed)


def plan(*, targets: tuple[str, ...] = ("k_proj", "down_proj"), dtype: str = "float64", **changed: Any) -> GraphPlan:
    own = {name: changed.pop(name) for name in ("sections", "base", "paths") if name in changed}
    return GraphPlan.model_validate({"layout": layout(**changed), "dtype": dtype, "lora": Lora(rank=3, alpha=5, targets=targets), **own})


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
