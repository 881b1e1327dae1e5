"""Random cases of each architecture, for the oracle and whatever is held against it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract.model.layout import Layout, LlamaLayout
from contract.worker.graph import adapter, weights
from contract.worker.plan import GraphPlan, Lora
from parity.reference.graph import Batch


@dataclass(frozen=True, kw_only=True)
class Case:
    """A plan with its weights, its adapter and a batch."""

    plan: GraphPlan
    weights: dict[str, np.ndarray]
    adapter: dict[str, np.ndarray]
    batch: Batch

    @property
    def ids(self) -> np.ndarray:
        """int64 [B, T]."""
        return self.batch.ids

    @property
    def labels(self) -> np.ndarray:
        """int64 [B, T]."""
        return self.batch.labels


def case(
    seed: int = 0, *, batch: int = 2, tokens: int = 7, layers: int = 2, bias: bool = True, tied: bool = False,
    lora: Lora | None = None, dtype: str = "float64", **sizes: int,
) -> Case:  # fmt: skip
    """A small random Llama: grouped queries, heads x head_dim != hidden_size, norms' weights not one, eps large enough to see."""
    shape = {
        "vocab_size": 37,
        "hidden_size": 20,
        "intermediate_size": 28,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
    layout = LlamaLayout(
        **(shape | sizes), num_hidden_layers=layers, max_position_embeddings=64, rms_norm_eps=3e-3, rope_theta=1234.5,
        attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied,
    )  # fmt: skip
    return of_layout(layout, seed, batch=batch, tokens=tokens, lora=lora, dtype=dtype)


def of_layout(
    layout: Layout, seed: int = 0, *, batch: int = 2, tokens: int = 7, lora: Lora | None = None, dtype: str = "float64",
    packed: bool = False,
) -> Case:  # fmt: skip
    """A random case of a layout; packed: of two segments a sequence, with positions of their own, and padding on both sides."""
    rng = np.random.default_rng(seed)
    plan = GraphPlan(layout=layout, dtype=dtype, lora=lora or Lora(rank=3, alpha=7.0))  # type: ignore[arg-type]
    base = {}
    for name, (dims, _) in weights(plan).items():
        drawn = rng.standard_normal(dims) * (1.0 if name == "embedding" else dims[-1] ** -0.5)
        base[name] = (1 + 0.2 * drawn if name.endswith("norm") else drawn).astype(np.float32)
    lora_ab = {name: (0.3 * rng.standard_normal(dims)).astype(np.float32) for name, (dims, _) in adapter(plan).items()}
    ids = rng.integers(0, layout.vocab_size, (batch, tokens))
    labels = rng.integers(0, layout.vocab_size, (batch, tokens))
    labels[0, :3] = -100
    labels[-1, -2:] = -100
    places = places_of(labels) if packed else {}
    return Case(plan=plan, weights=base, adapter=lora_ab, batch=Batch(ids=ids, labels=labels, **places))


def places_of(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Positions and segments of a packed batch: the first sequence is padded on the left, the others on the right; labels are fitted."""
    batch, tokens = labels.shape
    segments, positions = np.full((batch, tokens), -1), np.zeros((batch, tokens), np.int64)
    for row in range(batch):
        border = tokens // 2 + row % 2
        first, last = (1, tokens) if row == 0 else (0, tokens - 1)
        segments[row, first:border], segments[row, border:last] = 0, 1
        positions[row, first:border], positions[row, border:last] = np.arange(border - first), 3 + np.arange(last - border)
    labels[:, 1:][(segments[:, 1:] != segments[:, :-1]) | (segments[:, 1:] == -1)] = -100
    return {"positions": positions, "segments": segments}
