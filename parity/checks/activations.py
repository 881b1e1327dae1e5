"""Tier A: SiLU, GELU in both forms, SwiGLU, and their gradients.

Domain: |x| up to 1e10 (the cube of GELU's tanh form overflows float32 beyond 7e12), subnormal numbers and zeros of either sign; e^x
over- and underflows on the way. +inf and NaN have a check of their own, forward alone: the formulas have no value at -inf (-inf times 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Arrays, Case, Check
from parity.checks.primitive import DTYPES, check
from parity.reference.gelu import gelu
from parity.reference.silu import silu
from parity.reference.swiglu import swiglu

LENGTHS = (1, 9, 130)
SHAPES = ((1, 1), (3, 5), (4, 33))
"""(tokens, width) of SwiGLU."""

SWIGLU_EVERY = 2
"""SwiGLU's check draws one of so many examples: a product beside what SiLU's draws."""

SPECIAL_EVERY = 6
"""A check on infinities draws one of so many examples: it has little to vary."""


def _differ(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Where the two GELUs differ most."""
    return strategies.signs(rng, shape) * rng.uniform(2, 3, shape)


def _turning(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Next to where the slopes of SiLU and GELU pass through 0."""
    return rng.choice([-1.2784645, -0.7517916], shape) * (1 + 1e-4 * rng.standard_normal(shape))


def _large(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return strategies.signs(rng, shape) * 10.0 ** rng.uniform(1, 10, shape)


X: Mapping[str, strategies.Fill] = {
    "small integers": strategies.VALUES["small integers"],
    "gaussian": lambda rng, shape: 3 * rng.standard_normal(shape),
    "2 to 3": _differ,
    "turning": _turning,
    "exp leaves float32": lambda rng, shape: rng.uniform(-120, 120, shape),
    "exp leaves float64": lambda rng, shape: rng.uniform(-780, 780, shape),
    "large": _large,
    "wide range": strategies.VALUES["wide range"],
}
Y_BAR = ("gaussian", "small integers", "wide range")


def x_of(kind: str, seed: int, shape: tuple[int, ...]) -> Arrays:
    """A drawn x in each dtype; "subnormal" is so in each, and has zeros of both signs."""
    rng = np.random.default_rng(seed)
    if kind in X:
        values = X[kind](rng, shape)
        return {dtype: values.astype(dtype) for dtype in DTYPES}
    values = rng.standard_normal(shape) * rng.choice([0.0, 0.1, 1.0], shape)
    return {dtype: (values * float(np.finfo(dtype).smallest_normal)).astype(dtype) for dtype in DTYPES}


X_KINDS = (*X, "subnormal")


@st.composite
def _drawn(draw: st.DrawFn, attrs: Mapping[str, tuple[str, ...]]) -> Case:
    shape, seed = (draw(st.sampled_from(LENGTHS)),), draw(strategies.SEEDS)
    kind, bar = draw(st.sampled_from(X_KINDS)), draw(st.sampled_from(Y_BAR))
    given = {name: draw(st.sampled_from(values), label=name) for name, values in attrs.items()}
    x, y_bar = x_of(kind, seed, shape), strategies.VALUES[bar](np.random.default_rng([seed, 1]), shape)
    inputs = {dtype: {"x": x[dtype], "y_bar": y_bar.astype(dtype)} for dtype in DTYPES}
    return Case(name=f"x [{shape[0]}] {kind}, y_bar {bar}, {given}, seed {seed}", inputs=inputs, attrs=given)


@st.composite
def _special(draw: st.DrawFn, attrs: Mapping[str, tuple[str, ...]]) -> Case:
    seed = draw(strategies.SEEDS)
    given = {name: draw(st.sampled_from(values), label=name) for name, values in attrs.items()}
    rng = np.random.default_rng(seed)
    x = rng.permutation(np.concatenate([[np.inf, np.nan, 0.0, -0.0], 3 * rng.standard_normal(5)]))
    return Case(
        name=f"infinite and NaN x [9], {given}, seed {seed}", inputs={dtype: {"x": x.astype(dtype)} for dtype in DTYPES}, attrs=given
    )


@st.composite
def _swiglu(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    kinds = {
        "gate": draw(st.sampled_from(X_KINDS), label="gate"),
        "up": draw(st.sampled_from(list(strategies.VALUES)), label="up"),
        "y_bar": draw(st.sampled_from(Y_BAR), label="y_bar"),
    }
    gate, rng = x_of(kinds["gate"], seed, shape), np.random.default_rng([seed, 1])
    rest = strategies.by_dtype({name: strategies.VALUES[kinds[name]](rng, shape) for name in ("up", "y_bar")})
    inputs = {dtype: {"gate": gate[dtype], **rest[dtype]} for dtype in DTYPES}
    return Case(name=f"SwiGLU {shape}, {kinds}, seed {seed}", inputs=inputs)


_ANY: Mapping[str, tuple[str, ...]] = {}
_FORMS: Mapping[str, tuple[str, ...]] = {"approximate": ("none", "tanh")}

CHECKS: tuple[Check, ...] = (
    check("a.silu", "silu", silu, _drawn(_ANY), title="SiLU, and its gradient"),
    check("a.gelu", "gelu", gelu, _drawn(_FORMS), title="GELU by erf and by tanh, and its gradient"),
    replace(check("a.swiglu", "swiglu", swiglu, _swiglu(), title="SwiGLU, and its gradients"), cost=SWIGLU_EVERY),
    replace(
        check("a.silu_special", "silu", silu, _special(_ANY), title="SiLU of infinity, NaN and zeros", special=True), cost=SPECIAL_EVERY
    ),
    replace(
        check("a.gelu_special", "gelu", gelu, _special(_FORMS), title="GELU of infinity, NaN and zeros", special=True), cost=SPECIAL_EVERY
    ),
)  # fmt: skip
