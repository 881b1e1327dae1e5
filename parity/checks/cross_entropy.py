"""Tier A: softmax cross-entropy with ignored rows, loss and gradient."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Answered, Case, Check, Plan, Question, Request
from parity.checks.products import NO_FAST_PATH
from parity.judge import bounds
from parity.judge.verdict import Comparison, within
from parity.reference.cross_entropy import CrossEntropy, cross_entropy

SHAPES = ((1, 2), (4, 11), (16, 257), (5, 2048))
"""(tokens, vocabulary)."""


def _spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Down to where exp underflows."""
    return rng.uniform(-110, 0, shape)


def _huge(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """exp of these overflows unless the maximum is taken off first."""
    return rng.standard_normal(shape) * 3e3 + 1e4


LOGITS: dict[str, strategies.Fill] = {
    "small integers": strategies.VALUES["small integers"],
    "gaussian": lambda rng, shape: 4 * rng.standard_normal(shape),
    "all equal": strategies.VALUES["all equal"],
    "spread": _spread,
    "huge": _huge,
}


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    kind, reduction = draw(st.sampled_from(list(LOGITS))), draw(st.sampled_from(("sum", "mean")))
    ignore_index = draw(st.sampled_from((-100, -1, 0)))
    ignored = draw(st.integers(0, shape[0] - 1), label="ignored rows")
    rng = np.random.default_rng(seed)
    labels = rng.integers(1 if ignore_index == 0 else 0, shape[1], shape[0])
    labels[rng.permutation(shape[0])[:ignored]] = ignore_index
    inputs = strategies.by_dtype({"logits": LOGITS[kind](rng, shape), "loss_bar": np.asarray(rng.uniform(0.5, 2.0))})
    return Case(
        name=f"cross-entropy {shape}, {kind}, {reduction}, {ignored} ignored as {ignore_index}, seed {seed}",
        inputs={dtype: {**arrays, "labels": labels} for dtype, arrays in inputs.items()},
        attrs={"reduction": reduction, "ignore_index": ignore_index},
    )


def _request(dtype: str, case: Case) -> tuple[Request, ...]:
    return (Request(op="cross_entropy", attrs={**case.attrs, "dtype": dtype}, tensors=case.inputs[dtype]),)


def _reference(case: Case, dtype: str) -> CrossEntropy:
    tensors = case.inputs[dtype]
    return case.once(
        dtype,
        lambda: cross_entropy(tensors["logits"], tensors["labels"], loss_bar=float(tensors["loss_bar"]), **case.attrs),
    )


def _judge_precision(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    one = answered[0]
    exact = _reference(case, "float32")
    limits = bounds.cross_entropy(exact, "float32", one.elementary)
    return [
        within("loss", one.answers[0]["loss"], exact.loss, limits.loss),
        within("logits_grad", one.answers[0]["logits_grad"], exact.logits_grad, limits.logits_grad),
    ]


def _judge_same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    exact = _reference(case, "float64")
    limits = [bounds.cross_entropy(exact, "float64", one.elementary) for one in answered]
    first, second = (one.answers[0] for one in answered)
    return [
        within("loss", first["loss"], second["loss"], _both([limit.loss for limit in limits])),
        within("logits_grad", first["logits_grad"], second["logits_grad"], _both([limit.logits_grad for limit in limits])),
    ]


def _both(each: Sequence[bounds.Bound]) -> bounds.Bound:
    return bounds.Bound(np.sum([bound.limit for bound in each], axis=0), f"the sum of both: {each[0].source}")


CHECKS: tuple[Check, ...] = (
    Check(
        id="a.cross_entropy", tier="A", title="cross-entropy with ignored rows, and its gradient", operations=("cross_entropy",),
        cases=_drawn(), not_applicable={Question.FAST_PATH: NO_FAST_PATH},
        plans=(
            Plan(question=Question.SAME_FUNCTION, dtype="float64", requests=partial(_request, "float64"), judge=_judge_same_function),
            Plan(question=Question.PRECISION, dtype="float32", requests=partial(_request, "float32"), judge=_judge_precision),
        ),
    ),
)  # fmt: skip
