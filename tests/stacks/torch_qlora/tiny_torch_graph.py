"""A tiny Llama graph in which no two sizes are the same, opened in this process; and the units of rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from contract.model.layout import LlamaLayout
from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora
from stacks.torch_qlora.ops import TorchQlora

GRAPH = "tiny"
BATCH, TOKENS = 2, 13
LAYOUT = LlamaLayout(
    vocab_size=97, hidden_size=96, intermediate_size=112, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=20,
    max_position_embeddings=29, rms_norm_eps=0.01, rope_theta=5000.0, attention_bias=True, mlp_bias=True, tie_word_embeddings=False,
)  # fmt: skip
LORA = Lora(rank=4, alpha=10.0)


def plan(dtype: str = "float64", *, layout: dict[str, Any] | None = None, **others: Any) -> GraphPlan:
    """The tiny graph, with other fields of its layout or of the plan where they are given."""
    return GraphPlan.model_validate({"layout": LAYOUT.model_copy(update=layout or {}), "dtype": dtype, "lora": LORA} | others)


def weights(wanted: GraphPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights and an adapter whose B is not zero; norms' weights are around one."""
    generator = np.random.default_rng(seed)
    shapes = graph.weights(wanted) | graph.adapter(wanted)
    return {
        name: (generator.standard_normal(shape) * 0.15 + name.endswith("norm")).astype(np.float32) for name, (shape, _) in shapes.items()
    }


def batch(*, seed: int = 1, tokens: int = TOKENS, vocabulary: int = LAYOUT.vocab_size) -> dict[str, np.ndarray]:
    """ids, and labels of which a prompt, a padded end and a piece in the middle don't count."""
    ids = np.random.default_rng(seed).integers(0, vocabulary, (BATCH, tokens))
    labels = ids.copy()
    labels[0, : tokens // 3], labels[1, -2:], labels[1, tokens // 2] = -100, -100, -100
    return {"ids": ids, "labels": labels}


def opened(wanted: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> TorchQlora:
    """A stack on CPU with the graph open."""
    stack = TorchQlora("CPU")
    stack.open(GRAPH, wanted.model_dump(mode="json"), weights(wanted) if tensors is None else tensors)
    return stack


def all_taps(wanted: GraphPlan) -> list[str]:
    """Every tap that the plan's paths have."""
    return list(taps.full_names(wanted))


def gradients(wanted: GraphPlan, tensors: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
    """Every tap and every adapter gradient of the tiny batch."""
    return opened(wanted, tensors).gradients(GRAPH, all_taps(wanted), batch()).tensors


def everything_given(wanted: GraphPlan, section: str, seed: int = 2) -> dict[str, np.ndarray]:
    """A `block` request with random values for its input, every override and every cotangent."""
    generator = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(generator.standard_normal(shape), wanted.dtype)

    tensors = dict(batch())
    if section != taps.HEAD:
        del tensors["labels"]
    if section != taps.EMBEDDING:
        tensors["input"] = draw((BATCH, TOKENS, wanted.layout.hidden_size))
        del tensors["ids"]
    for tap in taps.section_taps(wanted, section):
        shape = graph.shape_of(section, tap, wanted, BATCH, TOKENS)
        tensors |= {f"override.{tap.name}": draw(shape), f"bar.{tap.name}": draw(shape)}
    return tensors


def draw(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def unit(dtype: str) -> float:
    return float(np.finfo(dtype).eps) / 2


def gamma(k: int, dtype: str) -> float:
    """Relative error of k roundings in a row (Higham 2002, lemma 3.1)."""
    return k * unit(dtype) / (1 - k * unit(dtype))


def scaling(lora: Lora) -> float:
    """s = alpha / r, with rslora alpha / sqrt(r)."""
    return lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)
