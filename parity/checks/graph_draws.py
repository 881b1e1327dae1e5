"""The graphs of tier C: drawn small ones with odd configurations, and a real checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from contract.errors import UserError
from contract.model import adapter_init, checkpoint
from contract.model.layout import LlamaLayout
from contract.worker import graph
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan, Lora, Nf4, plain
from parity.checks import strategies
from parity.checks.check import Arrays, Case
from parity.checks.graph_case import GraphCase, Weights, offsets

MODEL_TOKENS = 16
MODEL_SEQUENCES = 2
FEWEST_TOKENS = 3
"""Below this there is no sequence with an ignored label, one that counts and a token before it."""

# Drawn graphs: few shapes, since a new one costs a compile; heads x head_dim is not hidden_size, no two sizes are equal, each field
# has a value of its own.
LAYOUTS = (
    LlamaLayout(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=10,
        max_position_embeddings=29, rms_norm_eps=0.02, rope_theta=70.0, attention_bias=False, mlp_bias=True, tie_word_embeddings=True,
    ),
    LlamaLayout(
        vocab_size=97, hidden_size=36, intermediate_size=28, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=3, head_dim=6,
        max_position_embeddings=64, rms_norm_eps=0.3, rope_theta=1e4, attention_bias=True, mlp_bias=False, tie_word_embeddings=False,
    ),
)  # fmt: skip
LORAS = (Lora(rank=3, alpha=7.5), Lora(rank=5, alpha=3.0, rslora=True, targets=("q_proj", "v_proj", "o_proj", "down_proj")))
BATCHES = ((2, 29), (3, 5))
"""The first is as long as its layout has positions."""


@st.composite
def drawn(draw: st.DrawFn, base: Nf4 | None) -> Case:
    which, seed = draw(st.integers(0, len(LAYOUTS) - 1)), draw(strategies.SEEDS)
    initial, spiky = draw(st.booleans()), draw(st.booleans())
    plan = GraphPlan(layout=LAYOUTS[which], dtype="float64", lora=LORAS[which], base=base)
    rng = np.random.default_rng(seed)
    weights = weights_of(rng, plan)
    if spiky:
        weights["embedding"][:, 1] *= 30  # one channel far above the others, as trained models have
    ids, labels = batch_of(rng, BATCHES[which], plan.layout.vocab_size)
    name = f"{plan.layout.num_hidden_layers} layers of {plan.layout.hidden_size}, {'B = 0' if initial else 'random B'}, seed {seed}"
    return case_of(name, plan, weights, adapter_of(plan, seed, initial=initial), ids, labels, seed)


def weights_of(rng: np.random.Generator, plan: GraphPlan) -> dict[str, np.ndarray]:
    """Those of a plain base: what is quantised is quantised from them."""
    plain = graph.weights(plan.model_copy(update={"base": None}))
    return {name: _weight(rng, name, shape) for name, (shape, _) in plain.items()}


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that keep activations of a size; norms' are not one, biases not zero."""
    values = rng.standard_normal(shape)
    if name.endswith("norm"):
        values = 1 + 0.3 * values
    elif len(shape) == 2 and name != "embedding":
        values = values * shape[1] ** -0.5
    return values.astype(np.float32)


def adapter_of(plan: GraphPlan, seed: int, *, initial: bool) -> dict[str, np.ndarray]:
    """Where training starts, B = 0; or a B that makes the low-rank part as large as a tenth of the base, or more."""
    adapter = adapter_init.initial(plan, seed)
    if initial:
        return adapter
    rng = np.random.default_rng(seed)
    return {
        name: (0.1 * rng.standard_normal(matrix.shape)).astype(np.float32) if name.endswith("lora_b") else matrix
        for name, matrix in adapter.items()
    }


def batch_of(rng: np.random.Generator, shape: tuple[int, int], vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids with a true token 0; labels that count in a ragged middle of each sequence."""
    ids = rng.integers(0, vocabulary, shape)
    ids[0, 1] = 0
    labels = ids.copy()
    for sequence in range(shape[0]):
        labels[sequence, : int(rng.integers(0, shape[1] // 2))] = IGNORE_INDEX
        labels[sequence, shape[1] - int(rng.integers(0, shape[1] // 3)) :] = IGNORE_INDEX
    return ids, labels


def case_of(name: str, plan: GraphPlan, weights: Weights, adapter: Arrays, ids: np.ndarray, labels: np.ndarray, seed: int) -> GraphCase:
    given = offsets(plan, weights) if plan.base is not None else {}
    return GraphCase(
        name=name, inputs={"float64": {"ids": ids, "labels": labels}}, plan=plan, weights={**weights, **given}, adapter=adapter,
        ids=ids, labels=labels, seed=seed,
    )  # fmt: skip


def real_cases(model: str, base: Nf4 | None = None, adapters: Sequence[str] = ("B = 0", "random B")) -> Iterator[GraphCase]:
    """A checkpoint with two short sequences, for each of the adapters.

    Raises:
        MissingError: a known model that was not fetched.
        UserError: a folder that is no sound checkpoint, or not of an architecture that is honoured.
    """
    found = checkpoint.locate(model)
    if found.layout.max_position_embeddings < FEWEST_TOKENS:
        raise UserError(
            f"{found.path}: max_position_embeddings is {found.layout.max_position_embeddings}; "
            f"tier C needs {FEWEST_TOKENS} or more, for a label that counts beside one that does not"
        )
    lora = Lora(rank=8, alpha=12.0)
    plan = GraphPlan(layout=plain(found.layout), dtype="float64", lora=lora, base=base)
    for seed, adapter in enumerate(adapters):
        rng = np.random.default_rng(seed)
        shape = (MODEL_SEQUENCES, min(MODEL_TOKENS, found.layout.max_position_embeddings))
        ids, labels = batch_of(rng, shape, found.layout.vocab_size)
        matrices = adapter_of(plan, seed, initial=adapter == "B = 0")
        case = case_of(f"{found.name}, {shape[0]} x {shape[1]} tokens, {adapter}", plan, found.tensors, matrices, ids, labels, seed)
        yield dataclasses.replace(case, real=found.tensors["embedding"])
