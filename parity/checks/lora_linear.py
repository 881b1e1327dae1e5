"""Tier A: a linear with a LoRA adapter, dropout's mask given, and its gradients.

The zero adapter (B = 0) is drawn too: then y is the base's and the gradient of A exactly 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check, exact_check
from parity.reference.lora_linear import lora_linear

SHAPES = {(3, 5, 2, 4): False, (4, 4, 4, 4): True, (7, 33, 4, 20): True}
"""(tokens, in_features, rank, out_features), and whether there is a bias; where all are alike a transpose keeps every shape."""

ALPHAS = (1, 3, 12.5)
DROPOUTS = (0.0, 0.1, 0.25)
EXACT_ALPHAS = (2, 8)
"""Over a rank of 4, or its root: s is a power of two."""

EXACT_BITS = {"float32": 13, "float64": 42}
"""Odd integers of that many bits times +-1, at most 1,848 of them, s and 1 / (1 - dropout) counted: sums stay under 2^24 and 2^53."""

EXACT_EVERY = 2
"""The check on integers draws one of so many examples."""

Shape = tuple[int, int, int, int]


def sizes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, less the mask's."""
    tokens, inner, rank, out = shape
    named: dict[str, tuple[int, ...]] = {
        "x": (tokens, inner),
        "weight": (out, inner),
        "lora_a": (rank, inner),
        "lora_b": (out, rank),
        "y_bar": (tokens, out),
    }
    return {**named, "bias": (out,)} if SHAPES[shape] else named


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(list(SHAPES))), draw(strategies.SEEDS)
    kinds = {name: draw(st.sampled_from(list(strategies.VALUES)), label=name) for name in sizes(shape)}
    attrs: dict[str, Any] = {
        "alpha": draw(st.sampled_from(ALPHAS), label="alpha"),
        "rslora": draw(st.booleans(), label="rslora"),
        "dropout": draw(st.sampled_from(DROPOUTS), label="dropout"),
    }
    fresh = draw(st.sampled_from((False, False, False, True)), label="B is 0")
    rng = np.random.default_rng(seed)
    values = {name: strategies.VALUES[kinds[name]](rng, size) for name, size in sizes(shape).items()}
    if fresh:
        values["lora_b"] = np.zeros_like(values["lora_b"])
    inputs = {dtype: {**arrays, **_mask(seed, shape, attrs)} for dtype, arrays in strategies.by_dtype(values).items()}
    return Case(name=f"LoRA linear {shape}, {attrs}, {kinds}, {'B is 0, ' if fresh else ''}seed {seed}", inputs=inputs, attrs=attrs)


@st.composite
def _exact(draw: st.DrawFn) -> Case:
    shape, seed = (7, 33, 4, 20), draw(strategies.SEEDS)
    role = draw(st.sampled_from(list(sizes(shape))), label="which operand holds the odd integers")
    attrs = {
        "alpha": draw(st.sampled_from(EXACT_ALPHAS), label="alpha"),
        "rslora": draw(st.booleans(), label="rslora"),
        "dropout": draw(st.sampled_from((0.0, 0.5)), label="dropout"),
    }
    inputs = {}
    for dtype, bits in EXACT_BITS.items():
        rng = np.random.default_rng(seed)
        values = {
            name: strategies.odd_integers(rng, size, bits) if name == role else strategies.signs(rng, size)
            for name, size in sizes(shape).items()
        }
        inputs[dtype] = {**{name: array.astype(dtype) for name, array in values.items()}, **_mask(seed, shape, attrs)}
    return Case(name=f"LoRA linear {shape}, {attrs}, odd integers in {role}, seed {seed}", inputs=inputs, attrs=attrs)


def _mask(seed: int, shape: Shape, attrs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What dropout keeps; nothing where nothing is dropped."""
    if not attrs["dropout"]:
        return {}
    return {"keep": np.random.default_rng([seed, 1]).random(shape[:2]) >= attrs["dropout"]}


CHECKS: tuple[Check, ...] = (
    check("a.lora_linear", "lora_linear", lora_linear, _drawn(), title="linear with a LoRA adapter and dropout, and its gradients"),
    replace(
        exact_check(
            "a.lora_linear_exact", "lora_linear", lora_linear, _exact(), title="linear with a LoRA adapter on integers, bit for bit"
        ),
        cost=EXACT_EVERY,
    ),
)  # fmt: skip
