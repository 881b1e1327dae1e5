"""qlora_proxy_v1 in NumPy, float64, forward and backward, written from its formula; and tiny graphs of it.

Legend: B sequences, T tokens, N rows that count, D hidden_size, V vocabulary, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from contract.model.layout import GPT2Layout, LlamaLayout
from contract.worker import graph
from contract.worker.plan import GraphPlan, Lora

BATCH, TOKENS, DROPOUT = 3, 11, 0.25
LLAMA = LlamaLayout(
    vocab_size=83, hidden_size=48, intermediate_size=70, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=2, head_dim=8,
    max_position_embeddings=29, rms_norm_eps=0.5, rope_theta=5000.0, attention_bias=True, mlp_bias=False, tie_word_embeddings=False,
)  # fmt: skip
GPT2 = GPT2Layout(
    vocab_size=59, hidden_size=30, intermediate_size=64, num_hidden_layers=3, num_attention_heads=5, num_key_value_heads=5, head_dim=6,
    max_position_embeddings=19, layer_norm_epsilon=0.3, activation_function="gelu_new", scale_attn_weights=True,
    scale_attn_by_inverse_layer_idx=False, attn_pdrop=0.1, embd_pdrop=0.1, resid_pdrop=0.1, tie_word_embeddings=True,
)  # fmt: skip
LORA = Lora(rank=4, alpha=10.0, rank_pattern={"layers.1.o_proj": 3, "lm_head": 5}, alpha_pattern={"o_proj": 6.0, "layers.0.o_proj": 9.0})


def plan(dtype: str = "float64", *, layout: LlamaLayout | GPT2Layout = LLAMA, **others: Any) -> GraphPlan:
    """A proxy plan, of all layers unless middle_blocks is given."""
    lora = others.pop("lora", LORA if others.get("middle_blocks") is None else Lora(rank=4, alpha=10.0))
    return GraphPlan.model_validate({"graph": "qlora_proxy_v1", "layout": layout, "dtype": dtype, "lora": lora} | others)


def tensors_of(wanted: GraphPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and an adapter whose B is not zero, float32; no o_proj is symmetric."""
    generator = np.random.default_rng(seed)
    shapes = graph.weights(wanted) | graph.adapter(wanted)
    return {name: (generator.standard_normal(shape) * 0.2).astype(np.float32) for name, (shape, _) in shapes.items()}


def batch(wanted: GraphPlan, seed: int = 1) -> dict[str, np.ndarray]:
    """ids, and labels of which a beginning, an end and a piece in the middle don't count."""
    ids = np.random.default_rng(seed).integers(0, wanted.layout.vocab_size, (BATCH, TOKENS))
    labels = ids.copy()
    labels[0, :4], labels[1, -2:], labels[2, TOKENS // 2] = -100, -100, -100
    return {"ids": ids, "labels": labels}


@dataclass(frozen=True)
class Linear:
    """y = x W^T + s ((x m) A^T) B^T, s = alpha / r, with rslora alpha / sqrt(r); m = keep / (1 - dropout), or 1."""

    w_OI: np.ndarray
    a_RI: np.ndarray
    b_OR: np.ndarray
    s: float
    m: np.ndarray | float = 1.0

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self.w_OI.T + self.s * ((x * self.m) @ self.a_RI.T @ self.b_OR.T)

    def back(self, x_NI: np.ndarray, bar_NO: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cotangents of x, A and B."""
        kept_NI, bar_ax_NR = x_NI * self.m, self.s * bar_NO @ self.b_OR
        bar_x_NI = bar_NO @ self.w_OI + bar_ax_NR @ self.a_RI * self.m
        return bar_x_NI, bar_ax_NR.T @ kept_NI, self.s * bar_NO.T @ (kept_NI @ self.a_RI.T)


def linear(wanted: GraphPlan, tensors: dict[str, np.ndarray], path: str) -> Linear:
    rank = wanted.lora.rank_pattern.get(path, wanted.lora.rank_pattern.get(path.rpartition(".")[2], wanted.lora.rank))
    alpha = wanted.lora.alpha_pattern.get(path, wanted.lora.alpha_pattern.get(path.rpartition(".")[2], wanted.lora.alpha))
    weight = tensors["embedding" if path not in tensors else path]  # a head of its own: what NF4 or a merge made of the embedding
    a_RI, b_OR = tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"]
    return Linear(*(matrix.astype(np.float64) for matrix in (weight, a_RI, b_OR)), s=alpha / (rank**0.5 if wanted.lora.rslora else rank))


def norm(h: np.ndarray) -> np.ndarray:
    return h / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-6)


def norm_back(h: np.ndarray, bar: np.ndarray) -> np.ndarray:
    """The cotangent of h: with r = 1 / sqrt(mean(h^2) + eps), r bar - r^3 h mean(h bar)."""
    r = 1 / np.sqrt((h**2).mean(axis=-1, keepdims=True) + 1e-6)
    return r * bar - r**3 * h * (h * bar).mean(axis=-1, keepdims=True)


def logits(wanted: GraphPlan, tensors: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """[..., V] of ids [...]: the design's formula, line by line."""
    n = wanted.layout.num_hidden_layers if wanted.middle_blocks is None else wanted.middle_blocks
    h = tensors["embedding"].astype(np.float64)[ids]
    for layer in range(n):
        h = h + linear(wanted, tensors, f"layers.{layer}.o_proj")(norm(h)) / np.sqrt(n)
    return linear(wanted, tensors, "lm_head")(h / np.sqrt(n) if n else h)


def mask(path: str, width: int) -> np.ndarray:
    """A dropout mask of the tiny batch for a linear, [B, T, width]: its own for each path."""
    return np.random.default_rng(list(path.encode())).random((BATCH, TOKENS, width)) >= DROPOUT


def loss_and_gradients(
    wanted: GraphPlan, tensors: dict[str, np.ndarray], tokens: dict[str, np.ndarray], *, dropped: bool = False
) -> dict[str, np.ndarray]:
    """The mean loss, and the gradient of each adapter matrix, of the rows that count; with `mask` where inputs of A are dropped."""
    n = wanted.layout.num_hidden_layers if wanted.middle_blocks is None else wanted.middle_blocks
    counts = tokens["labels"][:, 1:] != -100
    previous_N, next_N = tokens["ids"][:, :-1][counts], tokens["labels"][:, 1:][counts]
    streams = [tensors["embedding"].astype(np.float64)[previous_N]]

    def own(path: str) -> Linear:
        m = mask(path, wanted.layout.hidden_size)[:, :-1][counts] / (1 - DROPOUT) if dropped else 1.0
        return replace(linear(wanted, tensors, path), m=m)

    blocks = [own(f"layers.{layer}.o_proj") for layer in range(n)]
    for block in blocks:
        streams.append(streams[-1] + block(norm(streams[-1])) / np.sqrt(n))
    head, scaled_ND = own("lm_head"), streams[-1] / np.sqrt(n or 1)
    logits_NV = head(scaled_ND)
    exps_NV = np.exp(logits_NV - logits_NV.max(axis=1, keepdims=True))
    probabilities_NV = exps_NV / exps_NV.sum(axis=1, keepdims=True)
    rows = np.arange(len(next_N))
    found = {"loss": np.asarray(-np.log(probabilities_NV[rows, next_N]).mean())}
    bar_NV = probabilities_NV.copy()
    bar_NV[rows, next_N] -= 1
    bar_ND, found["grad.lm_head.lora_a"], found["grad.lm_head.lora_b"] = head.back(scaled_ND, bar_NV / len(rows))
    bar_ND = bar_ND / np.sqrt(n or 1)
    for layer in reversed(range(n)):
        path, h_ND = f"grad.layers.{layer}.o_proj", streams[layer]
        bar_normed_ND, found[f"{path}.lora_a"], found[f"{path}.lora_b"] = blocks[layer].back(norm(h_ND), bar_ND / np.sqrt(n))
        bar_ND = bar_ND + norm_back(h_ND, bar_normed_ND)
    return found
