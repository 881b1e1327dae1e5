"""The adapter that a run starts from: the same bits in every stack, on every machine.

LoRA draws A and sets B = 0, so that the adapter changes nothing at first (arXiv:2106.09685, section 4.1). A follows PEFT's
`LoraLayer.reset_lora_parameters`: kaiming_uniform_ with a = sqrt(5), which is uniform in (-1 / sqrt(in), 1 / sqrt(in)).

Legend of dimensions: R rank, I in_features, O out_features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

from contract.model.layout import Layout
from contract.run.spec import AdapterSpec
from contract.worker import graph
from contract.worker.plan import GraphPlan

_BITS = 24
"""Random bits a value: as many as float32's significand has, so that the draw itself needs no rounding."""


def initial(plan: GraphPlan, seed: int) -> dict[str, np.ndarray]:
    """The initial adapter of a plan: every matrix of `graph.adapter(plan)`, float32, as `of_shapes` draws it."""
    return of_shapes({name: shape for name, (shape, _) in graph.adapter(plan).items()}, seed)


def of_contract(layout: Layout, adapter: AdapterSpec, seed: int) -> dict[str, np.ndarray]:
    """The initial adapter of a contract's full causal graph: layers.N.LINEAR.lora_a and .lora_b, float32, as `of_shapes` draws it.

    A linear's rank is the one that rank_pattern has for it alone (layers.3.q_proj), else for its kind (q_proj), else the contract's.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(layout.num_hidden_layers):
        for linear, (out_features, in_features) in layout.widths.items():
            if linear in (adapter.target_modules or layout.linears):
                name = f"layers.{layer}.{linear}"
                rank = adapter.rank_pattern.get(name, adapter.rank_pattern.get(linear, adapter.rank))
                shapes |= {f"{name}.lora_a": (rank, in_features), f"{name}.lora_b": (out_features, rank)}
    return of_shapes(shapes, seed)


def of_shapes(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Initial matrices by name: NAME.lora_a [R, I] drawn, NAME.lora_b [O, R] zero; float32.

        A_RI = f32(1 / sqrt(I)) * (2 k + 1 - 2^24) / 2^24,    k the upper 24 bits of a random word;    B_OR = 0

    The words are those of Philox4x64-10 (Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") for the
    counters 1, 2, ..., row by row of A. Its key is the first 128 bits, little-endian, of SHA-256("SEED NAME"): a matrix depends on the
    seed, its name and its width alone, whatever other sections and targets the plan has, and a larger rank only adds rows.
    2 k + 1 - 2^24 is odd and below 2^24 in magnitude, so float32 holds it exactly; the product with the bound is the one rounding.
    """
    matrices: dict[str, np.ndarray] = {}
    for name, shape in shapes.items():
        matrices[name] = _uniform(name, shape, seed) if name.endswith(".lora_a") else np.zeros(shape, np.float32)
    return matrices


def _uniform(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:16], "little")
    # Only raw words: NumPy keeps a bit generator's stream between versions, and a distribution's not (NEP 19).
    words: np.ndarray = np.random.Philox(counter=0, key=key).random_raw(math.prod(shape)).reshape(shape)
    odd = 2 * (words >> np.uint64(64 - _BITS)).astype(np.int64) + 1 - 2**_BITS
    bound = np.float32(1 / math.sqrt(shape[1]))
    matrix: np.ndarray = bound * (odd.astype(np.float32) / np.float32(2**_BITS))
    return matrix
