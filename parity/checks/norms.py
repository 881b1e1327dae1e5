"""Tier A: RMSNorm and LayerNorm, forward and gradient.

Domain: |x| up to 1e12. Beyond it autograd's own r^3, r = 1 / sqrt(mean square + eps), leaves float32's range long before y or x_grad do.
Layer norm's error grows with mean / standard deviation: rows with 100 times their deviation as their mean are drawn.

No exact check of RMSNorm: a declared sqrt or reciprocal may err at a power of two too.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check, exact_check
from parity.reference.layer_norm import layer_norm
from parity.reference.rms_norm import rms_norm

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = ((2, 4), (4, 4), (3, 24), (5, 96))
"""(tokens, width): n - 1 in n's place shows at each. One is square: a transpose keeps its shape."""

EXACT_SHAPE = (6, 8)
"""A power of two wide, so that a mean is exact by division and by a reciprocal."""

EPS = (1e-5, 1e-6, 1e-2)


def _spiky(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """One channel 30 to 300 times the others."""
    values: np.ndarray = rng.standard_normal(shape)
    values[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] *= rng.uniform(30, 300, shape[0])
    return values


def _far_from_one(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Mean squares of about 1e-4, 1e-2 and 1e4."""
    values: np.ndarray = rng.standard_normal(shape) * rng.choice([1e-2, 1e-1, 1e2], (shape[0], 1))
    return values


def _zero_rows(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """The first row is zero, so that eps alone is under the root."""
    values = rng.standard_normal(shape)
    values[0] = 0
    return values


def _offset(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """A mean of 100 standard deviations."""
    return 100 + rng.standard_normal(shape)


def _edge(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Up to the edge of the domain."""
    return rng.uniform(-1, 1, shape) * 1e12


def _subnormal(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Subnormal in float32."""
    return rng.standard_normal(shape) * 1e-39


ROWS: dict[str, strategies.Fill] = {
    **strategies.VALUES,
    "far from mean square one": _far_from_one,
    "zero rows": _zero_rows,
    "spiky": _spiky,
    "offset": _offset,
    "edge of the domain": _edge,
    "subnormal": _subnormal,
}
WEIGHTS = ("gaussian", "positive", "wide range")
COTANGENTS = ("gaussian", "small integers", "all equal", "cancelling", "wide range")


@st.composite
def _drawn(draw: st.DrawFn, op: str) -> Case:
    shape, seed, eps = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS), draw(st.sampled_from(EPS))
    kind = draw(st.sampled_from(list(ROWS)), label="x")
    weight, cotangent = draw(st.sampled_from(WEIGHTS), label="weight"), draw(st.sampled_from(COTANGENTS), label="y_bar")
    rng = np.random.default_rng(seed)
    values = {"x": ROWS[kind](rng, shape), "weight": strategies.VALUES[weight](rng, shape[1:])}
    if op == "layer_norm":
        values["bias"] = rng.standard_normal(shape[1:])
    values["y_bar"] = strategies.VALUES[cotangent](rng, shape)
    name = f"{op} {shape}, eps {eps}, x {kind}, weight {weight}, y_bar {cotangent}, seed {seed}"
    return Case(name=name, inputs=strategies.by_dtype(values), attrs={"eps": eps})


@st.composite
def _constant_rows(draw: st.DrawFn) -> Case:
    seed, eps = draw(strategies.SEEDS), draw(st.sampled_from(EPS))
    rng = np.random.default_rng(seed)
    values = {
        "x": np.repeat(rng.integers(-1000, 1001, (EXACT_SHAPE[0], 1)), EXACT_SHAPE[1], axis=1).astype(np.float64),
        "weight": rng.standard_normal(EXACT_SHAPE[1]),
        "bias": rng.standard_normal(EXACT_SHAPE[1]),
    }
    return Case(
        name=f"layer_norm {EXACT_SHAPE}, eps {eps}, constant rows, seed {seed}", inputs=strategies.by_dtype(values), attrs={"eps": eps}
    )


CHECKS: tuple[Check, ...] = (
    check("a.rms_norm", "rms_norm", rms_norm, _drawn("rms_norm"), title="RMSNorm, and its gradients"),
    check("a.layer_norm", "layer_norm", layer_norm, _drawn("layer_norm"), title="LayerNorm, and its gradients"),
    exact_check("a.layer_norm_exact", "layer_norm", layer_norm, _constant_rows(), title="LayerNorm of a constant row is its bias"),
)
