"""Tier A: matrix products and the biased linear, forward and gradient.

Three checks an operation, since each sees what the others can't: hard bounds hold for all data but are loose for long
sums; the root mean square on zero-mean random data stays sharp; exact integers must come out bit for bit in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from hypothesis import strategies as st

from parity.checks import strategies
from parity.checks.check import Answered, Arrays, Case, Check, Plan, Question, Request
from parity.checks.primitive import NO_FAST_PATH
from parity.judge import bounds
from parity.judge.verdict import Comparison, root_mean_square, within
from parity.reference import products
from parity.reference.products import Sums

Shape = tuple[int, int, int]

SHAPES: tuple[Shape, ...] = (
    (1, 1, 1), (2, 3, 2), (4, 4, 4), (5, 7, 3), (3, 64, 5), (2, 257, 6), (4, 1024, 7), (16, 1024, 17), (16, 4100, 19),
)  # fmt: skip
"""(rows, inner length, columns): square and not, odd, longer than a vector register, a model's width; and such as a stack may take a
path of its own for, of whose blocks and panels they are no multiple."""

RANDOM_SHAPES: tuple[Shape, ...] = ((3, 64, 5), (2, 257, 6), (4, 1024, 7), (16, 4100, 19))
MOST_TERMS = 2047
EXACT_BITS = {"float32": 13, "float64": 42}
"""Odd integers of that many bits times +-1, at most MOST_TERMS of them: sums stay under 2^24 and 2^53."""


def _reference_matmul(tensors: Arrays) -> dict[str, Sums]:
    return products.matmul(tensors["a"], tensors["b"], tensors["y_bar"])


def _reference_linear(tensors: Arrays) -> dict[str, Sums]:
    return products.linear(tensors["x"], tensors["weight"], tensors.get("bias"), tensors["y_bar"])


REFERENCES: Mapping[str, Callable[[Arrays], dict[str, Sums]]] = {"matmul": _reference_matmul, "linear": _reference_linear}
SHAPES_OF: Mapping[str, Callable[[Shape], dict[str, tuple[int, ...]]]] = {
    "matmul": lambda s: {"a": (s[0], s[1]), "b": (s[1], s[2]), "y_bar": (s[0], s[2])},
    "linear": lambda s: {"x": (s[0], s[1]), "weight": (s[2], s[1]), "bias": (s[2],), "y_bar": (s[0], s[2])},
}


@st.composite
def _drawn(draw: st.DrawFn, op: str) -> Case:
    shape, seed = draw(st.sampled_from(SHAPES)), draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    kinds = {name: draw(st.sampled_from(list(strategies.VALUES)), label=name) for name in SHAPES_OF[op](shape)}
    values = {name: strategies.VALUES[kinds[name]](rng, size) for name, size in SHAPES_OF[op](shape).items()}
    return Case(name=f"{op} {shape}, {kinds}, seed {seed}", inputs=strategies.by_dtype(values))


@st.composite
def _random(draw: st.DrawFn, op: str) -> Case:
    shape, seed = draw(st.sampled_from(RANDOM_SHAPES)), draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    values = {name: rng.standard_normal(size) for name, size in SHAPES_OF[op](shape).items()}
    return Case(name=f"{op} {shape}, zero-mean random, seed {seed}", inputs=strategies.by_dtype(values))


def _each_shape(op: str) -> Iterator[Case]:
    """Of the few examples that a short run draws, none need have a square weight, which fits when transposed too."""
    for shape in SHAPES:
        rng = np.random.default_rng(shape)
        values = {name: rng.standard_normal(size) for name, size in SHAPES_OF[op](shape).items()}
        yield Case(name=f"{op} {shape}, zero-mean random", inputs=strategies.by_dtype(values))


@st.composite
def _exact(draw: st.DrawFn, op: str) -> Case:
    shape, seed = draw(st.sampled_from([shape for shape in SHAPES if max(shape) <= MOST_TERMS])), draw(strategies.SEEDS)
    sizes = SHAPES_OF[op](shape)
    role = draw(st.sampled_from(list(sizes)), label="which operand holds the odd integers")
    inputs = {}
    for dtype, bits in EXACT_BITS.items():
        rng = np.random.default_rng(seed)
        values = {
            name: strategies.odd_integers(rng, size, bits) if name == role else strategies.signs(rng, size) for name, size in sizes.items()
        }
        inputs[dtype] = {name: array.astype(dtype) for name, array in values.items()}
    return Case(name=f"{op} {shape}, odd integers in {role}, seed {seed}", inputs=inputs)


def _requests(op: str, dtype: str) -> Callable[[Case], tuple[Request, ...]]:
    return lambda case: (Request(op=op, attrs={"dtype": dtype}, tensors=case.inputs[dtype]),)


def _reference(op: str, case: Case, dtype: str) -> dict[str, Sums]:
    return case.once(dtype, lambda: REFERENCES[op](case.inputs[dtype]))


def _judge_precision(op: str, dtype: str) -> Callable[[Case, Sequence[Answered], float], list[Comparison]]:
    """Against the reference, which in float64 errs as much as what it judges."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        exact, got = _reference(op, case, dtype), answered[0].answers[0]
        if dtype == "float64":
            return [within(name, got[name], sums.value, _twice(bounds.sums(sums, dtype))) for name, sums in exact.items()]
        return [within(name, got[name], sums.value, bounds.sums(sums, dtype)) for name, sums in exact.items()]

    return judge


def _judge_same_function(op: str) -> Callable[[Case, Sequence[Answered], float], list[Comparison]]:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        exact = _reference(op, case, "float64")
        return [either_way(name, answered, bounds.sums(sums, "float64")) for name, sums in exact.items()]

    return judge


def either_way(tensor: str, answered: Sequence[Answered], each: bounds.Bound, answer: int = 0) -> Comparison:
    """Two stacks that each lie within a bound of the exact value lie within twice that of each other."""
    first, second = (one.answers[answer][tensor] for one in answered)
    return within(tensor, first, second, _twice(each))


def _twice(each: bounds.Bound) -> bounds.Bound:
    return bounds.Bound(2 * each.limit, f"twice {each.source}")


def _judge_random(op: str) -> Callable[[Case, Sequence[Answered], float], list[Comparison]]:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        sums = _reference(op, case, "float32")["y"]
        scale, limit, source = bounds.sums_root_mean_square(sums, "float32", false_alarm)
        return [root_mean_square("y", answered[0].answers[0]["y"], sums.value, scale, limit, source)]

    return judge


def _judge_exact(op: str, dtype: str) -> Callable[[Case, Sequence[Answered], float], list[Comparison]]:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        source = f"integers: every sum is exact in {dtype}, in any order"
        exact = _reference(op, case, dtype)
        return [
            within(f"{name} of {one.stack}", one.answers[0][name], sums.value, bounds.Bound(np.zeros(sums.value.shape), source))
            for one in answered
            for name, sums in exact.items()
        ]

    return judge


def _checks(op: str, formula: str) -> tuple[Check, ...]:
    precision, same = _requests(op, "float32"), _requests(op, "float64")
    fast = {Question.FAST_PATH: NO_FAST_PATH}
    return (
        Check(
            id=f"a.{op}", tier="A", title=f"{formula}, and its gradients", operations=(op,), cases=_drawn(op), not_applicable=fast,
            fixed_cases=partial(_each_shape, op), fixed_count=len(SHAPES),
            plans=(
                Plan(question=Question.SAME_FUNCTION, dtype="float64", requests=same, judge=_judge_same_function(op)),
                Plan(question=Question.PRECISION, dtype="float32", requests=precision, judge=_judge_precision(op, "float32")),
                Plan(question=Question.PRECISION, dtype="float64", requests=same, judge=_judge_precision(op, "float64")),
            ),
        ),
        Check(
            id=f"a.{op}_exact", tier="A", title=f"{formula} on integers, bit for bit", operations=(op,),
            cases=_exact(op), not_applicable=fast,
            plans=(
                Plan(question=Question.SAME_FUNCTION, dtype="float64", requests=same, judge=_judge_exact(op, "float64")),
                Plan(question=Question.PRECISION, dtype="float32", requests=precision, judge=_judge_exact(op, "float32")),
                Plan(question=Question.PRECISION, dtype="float64", requests=same, judge=_judge_exact(op, "float64")),
            ),
        ),
        Check(
            id=f"a.{op}_random", tier="A", title=f"{formula} on zero-mean random data, root mean square", operations=(op,),
            cases=_random(op),
            not_applicable=fast | {Question.SAME_FUNCTION: f"a sharper precision test; a.{op} asks it"},
            plans=(Plan(question=Question.PRECISION, dtype="float32", requests=precision, judge=_judge_random(op), statistical=1),),
        ),
    )  # fmt: skip


CHECKS: tuple[Check, ...] = (*_checks("matmul", "y = a b"), *_checks("linear", "y = x W^T + b"))
