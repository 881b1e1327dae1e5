"""Tier A: clipping by the global norm, and one AdamW step.

Domain of clipping: squares and their sum are finite (|gradient| up to 1e18); squares under the smallest normal number may be lost.
Of AdamW: the same of its gradient, eps is 1e-8 or more, and beta1 and beta2 lie in [1/2, 1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check
from parity.reference.adamw import adamw_step
from parity.reference.clip_gradients import SMALL, clip_gradients
from parity.reference.primitive import Attributes, Tensors
from parity.reference.running_error import Arithmetic, Computed

SHAPES = ((1, 1, 1), (3, 5, 7), (16, 8, 33))
"""(rows and columns of a, elements of b)."""

LENGTHS = (1, 7, 65)


def _zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.zeros(shape)


def _scaled(size: float) -> strategies.Fill:
    return lambda rng, shape: size * rng.standard_normal(shape)


def _some_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """As rows of an embedding that no token of a batch uses."""
    return rng.standard_normal(shape) * rng.integers(0, 2, shape)


GRADIENTS: Mapping[str, strategies.Fill] = {**strategies.VALUES, "zero": _zero, "squares near overflow": _scaled(1e12)}
PAIRS = (1.0, 1e-6, 1e6)
"""How much larger b is than a: one norm for each tensor would then be another clipping."""

MAX_NORMS = (0.3, 1.0, 1e-3)
LIMITS = ("binds", "free", "just binds")
"""max_norm under the norm, as a rule; well over it; or over it by less than the 1e-6 in the divisor, so that it binds all the same."""


@st.composite
def _clipping(draw: st.DrawFn) -> Case:
    (rows, columns, length), seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    kinds = {name: draw(st.sampled_from(list(GRADIENTS)), label=name) for name in ("a", "b")}
    ratio, limit = draw(st.sampled_from(PAIRS), label="b over a"), draw(st.sampled_from(LIMITS), label="max_norm's place")
    binding = draw(st.sampled_from(MAX_NORMS), label="max_norm")
    rng = np.random.default_rng(seed)
    values = {"a": GRADIENTS[kinds["a"]](rng, (rows, columns)), "b": ratio * GRADIENTS[kinds["b"]](rng, (length,))}
    norm = float(np.sqrt(sum(np.sum(array * array) for array in values.values())))
    max_norm = {"binds": binding, "free": (norm + 1) * 1.5, "just binds": norm + SMALL / 2}[limit]
    return Case(
        name=f"gradients {(rows, columns)} {kinds['a']} and [{length}] {kinds['b']} times {ratio:g}, max_norm {max_norm:g}, seed {seed}",
        inputs=strategies.by_dtype(values),
        attrs={"max_norm": max_norm},
    )


SMALL_AND_LARGE: Mapping[str, strategies.Fill] = {
    "gaussian": strategies.VALUES["gaussian"],
    "some zero": _some_zero,
    "zero": _zero,
    "as small as eps": _scaled(1e-8),
    "tiny": _scaled(1e-30),
    "huge": _scaled(1e15),
    "wide range": strategies.VALUES["wide range"],
}
WEIGHTS: Mapping[str, strategies.Fill] = {name: SMALL_AND_LARGE[name] for name in ("gaussian", "zero", "as small as eps", "wide range")}
MOMENTS = (0.0, 1.0, 1e3)
"""How large the moments are, beside what the gradient would make them."""


@st.composite
def _adamw(draw: st.DrawFn) -> Case:
    length, seed, step = draw(st.sampled_from(LENGTHS)), draw(strategies.SEEDS), draw(st.sampled_from((0, 1, 1000, 100_000)), label="step")
    kind, weight_kind = draw(st.sampled_from(list(SMALL_AND_LARGE)), label="gradient"), draw(st.sampled_from(list(WEIGHTS)), label="weight")
    sizes = {name: draw(st.sampled_from(MOMENTS), label=name) for name in ("m", "v")}
    attrs = {
        "lr": draw(st.sampled_from((1e-3, 0.5)), label="lr"),
        "beta1": draw(st.sampled_from((0.9, 0.75)), label="beta1"),
        "beta2": draw(st.sampled_from((0.999, 0.95)), label="beta2"),
        "eps": draw(st.sampled_from((1e-8, 1e-2)), label="eps"),
        "weight_decay": draw(st.sampled_from((0.0, 0.1)), label="weight_decay"),
    }
    rng = np.random.default_rng(seed)
    gradient, older = (SMALL_AND_LARGE[kind](rng, (length,)) for _ in range(2))
    values = {
        "weight": WEIGHTS[weight_kind](rng, (length,)),
        "gradient": gradient,
        "m": sizes["m"] * older,
        "v": sizes["v"] * older * older * rng.uniform(0.5, 2, length),
    }
    inputs = {dtype: {**arrays, "step": np.asarray(step)} for dtype, arrays in strategies.by_dtype(values).items()}
    return Case(
        name=f"AdamW [{length}], step {step}, gradient {kind}, weight {weight_kind}, moments {sizes}, {attrs}, seed {seed}",
        inputs=inputs,
        attrs=attrs,
    )


EXACT_EVERY = 4
"""The check on integers draws one of so many examples: it has one length and no kinds."""


@st.composite
def _halves(draw: st.DrawFn) -> Case:
    length, seed, step = LENGTHS[-1], draw(strategies.SEEDS), draw(st.sampled_from((0, 1)), label="step")
    inputs = {}
    for dtype, bits in {"float32": 11, "float64": 25}.items():  # squares stay under 2^22 and 2^50
        rng = np.random.default_rng(seed)
        values = {name: strategies.odd_integers(rng, (length,), bits) for name in ("weight", "gradient", "m")}
        values["v"] = strategies.odd_integers(rng, (length,), bits) ** 2
        inputs[dtype] = {**{name: array.astype(dtype) for name, array in values.items()}, "step": np.asarray(step)}
    attrs = {"lr": 0.5, "beta1": 0.5, "beta2": 0.5, "eps": 1e-2, "weight_decay": draw(st.sampled_from((0.0, 0.25)), label="weight_decay")}
    return Case(name=f"AdamW [{length}], step {step}, odd integers and halves, {attrs}, seed {seed}", inputs=inputs, attrs=attrs)


def exact_moments(tensors: Tensors, attrs: Attributes, one: Arithmetic) -> dict[str, Computed]:
    """AdamW where integers and betas of 1/2 make every order of the moments exact; the weight still errs."""
    answer = adamw_step(tensors, attrs, one)
    return {name: computed if name == "weight_next" else one.exact(computed.value) for name, computed in answer.items()}


CHECKS: tuple[Check, ...] = (
    check("a.clip_gradients", "clip_gradients", clip_gradients, _clipping(), title="clipping by the norm of all gradients"),
    check("a.adamw_step", "adamw_step", adamw_step, _adamw(), title="one AdamW step"),
    replace(
        check("a.adamw_step_exact", "adamw_step", exact_moments, _halves(), title="AdamW's moments of integers, bit for bit"),
        cost=EXACT_EVERY,
    ),
)
