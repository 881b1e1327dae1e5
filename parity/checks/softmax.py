"""Tier A: softmax with hidden entries (-inf), forward and gradient.

Domain: |x| up to 1.5e38, so that the difference of two is finite in float32; or -inf, which gets 0, in a row that has a finite entry.
A NaN makes its row NaN. The exact check asks for exp(0) = 1 and for quotients and reciprocals of powers of two.
"""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check, exact_check
from parity.reference.softmax import softmax

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = ((2, 3), (4, 4), (4, 17), (3, 64))
"""(rows, entries); one is square: a transpose keeps its shape."""

EXACT_SHAPE = (5, 8)
EXACT_BITS = {"float32": 13, "float64": 42}
"""Bits of the odd integers in y_bar: a sum of eight over eight has three bits more before the point and three behind."""


def hide(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    """Some entries of each row become -inf, never all."""
    hidden = rng.random(values.shape) < 0.4
    hidden[np.arange(values.shape[0]), rng.integers(0, values.shape[1], values.shape[0])] = False
    return np.where(hidden, -np.inf, values)


LOGITS: dict[str, strategies.Fill] = {
    "small integers": strategies.VALUES["small integers"],
    "gaussian": lambda rng, shape: 4 * rng.standard_normal(shape),
    "all equal": strategies.VALUES["all equal"],
    "hidden entries": lambda rng, shape: hide(rng, 4 * rng.standard_normal(shape)),
    "spread": lambda rng, shape: rng.uniform(-110, 0, shape),  # to where exp underflows in float32
    "far apart": lambda rng, shape: rng.uniform(-800, 0, shape),  # and in float64
    "huge": lambda rng, shape: rng.standard_normal(shape) * 3 + 1e4,  # exp overflows unless the maximum is taken off
    "edge of the domain": lambda rng, shape: strategies.signs(rng, shape) * 1.5e38,
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-39,
}
COTANGENTS = ("gaussian", "small integers", "all equal", "cancelling", "wide range")


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    kind, cotangent = draw(st.sampled_from(list(LOGITS)), label="x"), draw(st.sampled_from(COTANGENTS), label="y_bar")
    rng = np.random.default_rng(seed)
    values = {"x": LOGITS[kind](rng, shape), "y_bar": strategies.VALUES[cotangent](rng, shape)}
    return Case(name=f"softmax {shape}, x {kind}, y_bar {cotangent}, seed {seed}", inputs=strategies.by_dtype(values))


@st.composite
def _equal(draw: st.DrawFn) -> Case:
    """1, 2, 4 or 8 equal entries a row, the others hidden."""
    seed = draw(strategies.SEEDS)
    inputs = {}
    for dtype, bits in EXACT_BITS.items():
        rng = np.random.default_rng(seed)
        x = np.full(EXACT_SHAPE, -np.inf)
        for row in x:
            row[rng.permutation(EXACT_SHAPE[1])[: rng.choice([1, 2, 4, 8])]] = rng.standard_normal() * rng.choice([1.0, 1e4, 1e30])
        inputs[dtype] = {"x": x.astype(dtype), "y_bar": strategies.odd_integers(rng, EXACT_SHAPE, bits).astype(dtype)}
    return Case(name=f"softmax {EXACT_SHAPE}, a power of two of equal entries a row, seed {seed}", inputs=inputs)


@st.composite
def _special(draw: st.DrawFn) -> Case:
    """The first row holds a NaN, the others hidden entries."""
    shape, seed = draw(st.sampled_from(SHAPES[:2])), draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    x = hide(rng, 4 * rng.standard_normal(shape))
    x[0] = rng.standard_normal(shape[1])
    x[0, rng.integers(0, shape[1])] = np.nan
    inputs = strategies.by_dtype({"x": x, "y_bar": rng.standard_normal(shape)})
    return Case(name=f"softmax {shape}, a NaN in the first row, hidden entries, seed {seed}", inputs=inputs)


CHECKS: tuple[Check, ...] = (
    check("a.softmax", "softmax", softmax, _drawn(), title="softmax with hidden entries, and its gradient"),
    exact_check("a.softmax_exact", "softmax", softmax, _equal(), title="softmax of 2^k equal entries is 2^-k"),
    check("a.softmax_special", "softmax", softmax, _special(), title="softmax of a row with a NaN is NaN, of no other", special=True),
)
