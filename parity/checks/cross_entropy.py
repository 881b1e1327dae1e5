"""Tier A: softmax cross-entropy with ignored rows, loss and gradient.

Domain: |logit| up to half the largest number; logits of -inf away from the label have a check of their own.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Case, Check
from parity.checks.primitive import check
from parity.reference.cross_entropy import cross_entropy

SHAPES = ((1, 2), (7, 33), (5, 2048))
"""(tokens, vocabulary)."""

SPECIAL_EVERY = 3
"""The check on logits of -inf draws one of so many examples."""


def _spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Down to where exp underflows."""
    return rng.uniform(-110, 0, shape)


def _huge(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """exp of these overflows unless the maximum is taken off first."""
    return rng.standard_normal(shape) * 3e3 + 1e4


def _spiky(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """One logit far above the others, as a model that is sure has it: the label's, or another."""
    logits = rng.standard_normal(shape)
    logits[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] += rng.uniform(10, 100, shape[0])
    return logits


LOGITS: dict[str, strategies.Fill] = {
    "small integers": strategies.VALUES["small integers"],
    "gaussian": lambda rng, shape: 4 * rng.standard_normal(shape),
    "all equal": strategies.VALUES["all equal"],
    "spread": _spread,
    "huge": _huge,
    "spiky": _spiky,
}


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    return _case(draw, shape, seed, draw(st.sampled_from(list(LOGITS))))


@st.composite
def _masked(draw: st.DrawFn) -> Case:
    """Logits of -inf, as of a token that must not be chosen: any but the label's, or but one of an ignored row; in one row all of those."""
    shape, seed = SHAPES[1], draw(strategies.SEEDS)
    case = _case(draw, shape, seed, draw(st.sampled_from(("gaussian", "spread"))))
    rng = np.random.default_rng([seed, 1])
    forbidden = rng.random(shape) < 0.4
    forbidden[rng.integers(shape[0])] = True
    labels = case.inputs["float64"]["labels"]
    kept = np.where(labels == case.attrs["ignore_index"], rng.integers(0, shape[1], shape[0]), labels)
    forbidden[np.arange(shape[0]), kept] = False
    inputs = {
        dtype: {**arrays, "logits": np.where(forbidden, -np.inf, arrays["logits"]).astype(dtype)} for dtype, arrays in case.inputs.items()
    }
    return Case(name=f"{case.name}, {int(forbidden.sum())} logits of -inf", inputs=inputs, attrs=case.attrs)


def _case(draw: st.DrawFn, shape: tuple[int, int], seed: int, kind: str) -> Case:
    reduction, ignore_index = draw(st.sampled_from(("sum", "mean"))), draw(st.sampled_from((-100, -1, 0)))
    ignored = draw(st.integers(0, shape[0] - 1), label="ignored rows")
    rng = np.random.default_rng(seed)
    least, last = 1 if ignore_index == 0 else 0, shape[1] - 1
    labels = rng.integers(least, last + 1, shape[0])
    labels[rng.integers(shape[0])] = rng.choice([least, last])
    labels[rng.permutation(shape[0])[:ignored]] = ignore_index
    inputs = strategies.by_dtype({"logits": LOGITS[kind](rng, shape), "loss_bar": np.asarray(rng.uniform(0.5, 2.0))})
    return Case(
        name=f"cross-entropy {shape}, {kind}, {reduction}, {ignored} ignored as {ignore_index}, seed {seed}",
        inputs={dtype: {**arrays, "labels": labels} for dtype, arrays in inputs.items()},
        attrs={"reduction": reduction, "ignore_index": ignore_index},
    )


CHECKS: tuple[Check, ...] = (
    check("a.cross_entropy", "cross_entropy", cross_entropy, _drawn(), title="cross-entropy with ignored rows, and its gradient"),
    replace(
        check(
            "a.cross_entropy_special", "cross_entropy", cross_entropy, _masked(),
            title="cross-entropy with logits of -inf, and its gradient", special=True,
        ),
        cost=SPECIAL_EVERY,
    ),
)  # fmt: skip
