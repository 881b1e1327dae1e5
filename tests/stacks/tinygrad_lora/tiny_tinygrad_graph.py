"""A tiny Llama that shows what easy shapes hide, its tensors, and how far rounding may carry its values off the oracle's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from contract.model.layout import LlamaLayout
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora
from contract.worker.taps import EMBEDDING, HEAD
from parity.judge.confidence import per_comparison
from parity.judge.perturb import Response, row_limits
from parity.reference.graph import Oracle

BATCH, TOKENS, RUNS = 2, 7, 30
EXP_ULP, EXP_ULP_WEBGPU = 1.1, 1.5
"""The worst that the stack declares of exp, on the CPU and on WebGPU (capabilities.json)."""

# 1 < K < H, H E != D, eps large enough to see, a small theta so that the angles differ, biases, an untied head; V no multiple of 16, F one
LAYOUT = LlamaLayout(
    vocab_size=61, hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, head_dim=6,
    max_position_embeddings=64, rms_norm_eps=1e-2, rope_theta=100.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
)  # fmt: skip
LORA = Lora(rank=3, alpha=5.0, rslora=True, targets=("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"))


def plan_of(dtype: str = "float64", **changes: object) -> GraphPlan:
    """The tiny graph's plan."""
    return GraphPlan.model_validate({"layout": LAYOUT, "dtype": dtype, "lora": LORA, **changes})


def tensors_of(plan: GraphPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and adapter: norms about one, B not zero."""
    generator = np.random.default_rng(seed)
    expected = graph.weights(plan) | graph.adapter(plan)
    values = {name: 0.3 * generator.standard_normal(shape) + name.endswith("_norm") for name, (shape, _) in expected.items()}
    return {name: value.astype(np.float32) for name, value in values.items()}


def batch_of(seed: int = 0) -> dict[str, np.ndarray]:
    """ids, and labels that leave out a prompt and a tail."""
    ids = np.random.default_rng(seed).integers(0, LAYOUT.vocab_size, (BATCH, TOKENS))
    labels = ids.copy()
    labels[0, :3], labels[1, -2:] = graph.IGNORE_INDEX, graph.IGNORE_INDEX
    return {"ids": ids, "labels": labels}


def all_taps(plan: GraphPlan) -> list[str]:
    """Every tap of the whole graph."""
    return list(taps.full_names(plan))


def block_request(plan: GraphPlan, section: str, *, overrides: float, bars: float, seed: int) -> dict[str, np.ndarray]:
    """A `block` request that overrides about that part of the section's taps, and gives that part of its cotangents."""
    generator = np.random.default_rng(seed)
    width = plan.layout.hidden_size
    request = {"ids": batch_of(seed)["ids"]} if section == EMBEDDING else {"input": generator.standard_normal((BATCH, TOKENS, width))}
    if section == HEAD:
        request["labels"] = batch_of(seed)["labels"]
    # which ones depends on their names alone, so that requests of other seeds are the same function
    chosen = np.random.default_rng(len(section))
    for tap in taps.section_taps(plan, section):
        shape = graph.shape_of(section, tap, plan, BATCH, TOKENS)
        for kind, part in (("override", overrides), ("bar", bars)):
            if chosen.random() < part:
                request[f"{kind}.{tap.name}"] = np.asarray(generator.standard_normal(shape))
    return {name: value if value.dtype == np.int64 else value.astype(plan.dtype) for name, value in request.items()}


def oracle_of(plan: GraphPlan, tensors: Mapping[str, np.ndarray]) -> Oracle:
    """The float64 oracle on the same tensors."""
    return Oracle(plan, tensors.__getitem__, {name: tensors[name] for name in graph.adapter(plan)})


def outside(got: Mapping[str, np.ndarray], exact: Mapping[str, np.ndarray], response: Response, dtype: str) -> dict[str, float]:
    """What lies outside of the perturbed oracle's limits, and by which factor; `sides` is 2, as the oracle rounds too."""
    rows = sum(response.rows[name].size for name in got)
    factors: dict[str, float] = {}
    for name, value in got.items():
        deviation = np.sqrt(np.square(np.atleast_1d(value.astype(np.float64) - exact[name])).sum(axis=-1))
        limits = row_limits(response.rows[name], dtype=dtype, runs=RUNS, false_alarm=per_comparison(rows), sides=2)
        if not (deviation <= limits).all():
            factors[name] = float(np.max(deviation / np.maximum(limits, np.finfo(np.float64).tiny)))
    return factors
