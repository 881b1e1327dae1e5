"""Tier A: RoPE's tables, and the rotation with its gradient.

Domain: positions from 0 to 1,048,575, the longest context that the contract takes; |x| up to 1e38. The tables are made in float64 and
cast once: angles in float32 are off by 1e-7 of themselves, which at position 1e5 is everything.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check, exact_check
from parity.reference.rope import rope, rope_tables

Shape = tuple[int, int, int, int]

SHAPES: tuple[Shape, ...] = ((1, 1, 2, 2), (2, 3, 4, 6), (1, 4, 5, 16))
"""(sequences, heads, tokens, head_dim)."""

TABLE_SHAPES = ((2, 2), (4, 6), (7, 64))
"""(tokens, head_dim)."""

LONGEST = 1_048_575
THETAS = (1e4, 5e5, 40_890.7)
"""The last, as of a base that was rescaled for longer texts, is no float32."""

SCALINGS: dict[str, Mapping[str, object] | None] = {
    "none": None,
    "linear": {"rope_type": "linear", "factor": 3.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    },
    "llama3, other values": {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.5, "high_freq_factor": 60.0, "original_max_position_embeddings": 512,
    },
}  # fmt: skip

ROWS: dict[str, strategies.Fill] = {
    **strategies.VALUES,
    "edge of the domain": lambda rng, shape: strategies.signs(rng, shape) * 1e38,
    "subnormal": lambda rng, shape: rng.standard_normal(shape) * 1e-39,
}


def _from_zero(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return np.broadcast_to(np.arange(shape[1]), shape)


def _packed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """A document ends and another begins, each counted from 0."""
    starts = rng.integers(0, shape[1], (shape[0], 1))
    return np.where(np.arange(shape[1]) >= starts, np.arange(shape[1]) - starts, np.arange(shape[1]))


def _far(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """The last tokens of the longest text."""
    return LONGEST - np.broadcast_to(np.arange(shape[1])[::-1], shape)


def _anywhere(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Even over the magnitudes."""
    positions: np.ndarray = np.floor((LONGEST + 1) ** rng.uniform(0, 1, shape))
    return positions.clip(0, LONGEST)


POSITIONS = {"from 0": _from_zero, "packed": _packed, "far": _far, "anywhere": _anywhere}


@st.composite
def _tables(draw: st.DrawFn) -> Case:
    (length, head_dim), seed = draw(st.sampled_from(TABLE_SHAPES)), draw(strategies.SEEDS)
    attrs, how, positions = _angles(draw, np.random.default_rng(seed), (1, length))
    inputs = {dtype: {"positions": positions[0]} for dtype in ("float64", "float32")}
    name = f"rope_tables of {length} positions, head_dim {head_dim}, {how}, seed {seed}"
    return Case(name=name, inputs=inputs, attrs={**attrs, "head_dim": head_dim})


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    kinds = {name: draw(st.sampled_from(list(ROWS)), label=name) for name in ("x", "y_bar")}
    attrs, how, positions = _angles(draw, rng, (shape[0], shape[2]))
    values = strategies.by_dtype({name: ROWS[kind](rng, shape) for name, kind in kinds.items()})
    inputs = {dtype: {**arrays, "positions": positions} for dtype, arrays in values.items()}
    return Case(name=f"rope {shape}, {kinds}, {how}, seed {seed}", inputs=inputs, attrs=attrs)


def _angles(draw: st.DrawFn, rng: np.random.Generator, shape: tuple[int, int]) -> tuple[dict[str, object], str, np.ndarray]:
    """theta and scaling, what they are called, and positions [sequences, tokens]."""
    theta, scaling = draw(st.sampled_from(THETAS), label="theta"), draw(st.sampled_from(list(SCALINGS)), label="scaling")
    kind = draw(st.sampled_from(list(POSITIONS)), label="positions")
    positions = np.ascontiguousarray(POSITIONS[kind](rng, shape), dtype=np.int64)
    return {"theta": theta, "scaling": SCALINGS[scaling]}, f"theta {theta:g}, scaling {scaling}, positions {kind}", positions


@st.composite
def _at_zero(draw: st.DrawFn) -> Case:
    shape, seed = SHAPES[-1], draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    scaling = draw(st.sampled_from(list(SCALINGS)), label="scaling")
    values = strategies.by_dtype({"x": rng.standard_normal(shape), "y_bar": rng.standard_normal(shape)})
    positions = np.zeros((shape[0], shape[2]), dtype=np.int64)
    inputs = {dtype: {**arrays, "positions": positions} for dtype, arrays in values.items()}
    attrs = {"theta": THETAS[0], "scaling": SCALINGS[scaling]}
    return Case(name=f"rope {shape} at position 0, scaling {scaling}, seed {seed}", inputs=inputs, attrs=attrs)


CHECKS: tuple[Check, ...] = (
    check("a.rope_tables", "rope_tables", rope_tables, _tables(), title="RoPE's tables, made in float64 and cast once"),
    check("a.rope", "rope", rope, _drawn(), title="RoPE in halves, and its gradient"),
    exact_check("a.rope_exact", "rope", rope, _at_zero(), title="RoPE at position 0 is the identity"),
)
