"""Tier A: the declared worst error of each elementary function, verified over the range that is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from contract.worker.capabilities import Elementary
from parity.checks import strategies
from parity.checks.check import Answered, Case, Check, Plan, Question, Request
from parity.judge import bounds
from parity.judge.verdict import Comparison, at_most, within
from parity.reference import elementary

RANGES: dict[tuple[str, str], tuple[float, float]] = {
    ("exp", "float32"): (-104.0, 0.0),
    ("exp", "float64"): (-746.0, 0.0),
    ("log", "float32"): (1.0, 1e6),
    ("log", "float64"): (1.0, 1e6),
}
"""Where cross-entropy evaluates them: exp(z - max z), down to where it underflows; log of a sum of 1 to V terms of at most 1."""

POINTS = {"float32": 4096, "float64": 256}
DENSE_POINTS = {"float32": 2**19, "float64": 2**12}
"""A float64 point costs an evaluation to 120 bits, a float32 point one in float64."""


def _points(function: str, dtype: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Even over the range, even over the magnitudes, and next to where range reductions change over."""
    low, high = RANGES[function, dtype]
    third = count // 3
    even = rng.uniform(low, high, count - 2 * third)
    if function == "exp":
        magnitudes = -(10.0 ** rng.uniform(-10, np.log10(-low), third))
        border = -(rng.integers(1, int(-2 * low), third) * np.log(2) / 2) * (1 + rng.uniform(-1e-6, 1e-6, third))
    else:
        magnitudes = 1 + 10.0 ** rng.uniform(-10, np.log10(high - 1), third)
        border = 2.0 ** (rng.integers(1, 38, third) / 2) * (1 + rng.uniform(-1e-6, 1e-6, third))
    points: np.ndarray = np.clip(np.concatenate([even, magnitudes, border]), low, high).astype(dtype)
    return points


@st.composite
def _drawn(draw: st.DrawFn, function: str) -> Case:
    return _case(function, POINTS, draw(strategies.SEEDS))


def _case(function: str, points: dict[str, int], seed: int) -> Case:
    rng = np.random.default_rng(seed)
    inputs = {dtype: {"x": _points(function, dtype, count, rng)} for dtype, count in points.items()}
    return Case(name=f"{function} at {points} points, seed {seed}", inputs=inputs, attrs={"function": function})


def _dense(function: str) -> Callable[[], Iterator[Case]]:
    return lambda: iter([_case(function, DENSE_POINTS, 0)])


def _zoom(case: Case, where: tuple[int, ...]) -> Case:
    """The one failing point, in each dtype's grid the one of that index."""
    inputs = {dtype: {"x": tensors["x"][where[0] : where[0] + 1]} for dtype, tensors in case.inputs.items()}
    return Case(name=f"point {where[0]} of: {case.name}", inputs=inputs, attrs=case.attrs)


def _judge(dtype: str) -> Callable[[Case, Sequence[Answered], float], list[Comparison]]:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        function, x = case.attrs["function"], case.inputs[dtype]["x"]
        declared = _declaration(answered[0], function, dtype)
        exact = case.once(dtype, lambda: elementary.evaluate(function, x))
        error = elementary.error_in_ulp(exact, answered[0].answers[0]["y"])
        bound = bounds.elementary(declared, elementary.ulp(exact, dtype))
        return [
            within("y - exact", error, np.zeros_like(error), bound, unit="ulp"),
            at_most(
                f"absolute error of {function} as declared",
                declared.absolute / bounds.smallest_normal(dtype),
                bounds.DECLARED_ULP_WITHOUT_WAIVER,
                "smallest normal numbers",
                "a worse function needs a waiver",
            ),
            at_most(f"{function} as declared", declared.ulp, bounds.DECLARED_ULP_WITHOUT_WAIVER, "ulp", "a worse function needs a waiver"),
        ]

    return judge


def _declaration(one: Answered, function: str, dtype: str) -> Elementary:
    low, high = RANGES[function, dtype]
    for declared in one.elementary:
        if (declared.function, declared.dtype) == (function, dtype) and declared.low <= low and high <= declared.high:
            return declared
    raise ValueError(f"{one.stack} declares no error of {function} in {dtype} on [{low:g}, {high:g}]; add it to its capabilities.json")


def _plan(function: str, dtype: str) -> Plan:
    def requests(case: Case) -> tuple[Request, ...]:
        return (Request(op="elementary", attrs={"function": function, "dtype": dtype}, tensors=case.inputs[dtype]),)

    return Plan(question=Question.PRECISION, dtype=dtype, requests=requests, judge=_judge(dtype))


CHECKS: tuple[Check, ...] = tuple(
    Check(
        id=f"a.{function}", tier="A", title=f"{function}, no worse than declared", operations=("elementary",), cases=_drawn(function),
        fixed_cases=_dense(function), fixed_count=1, zoom=_zoom, plans=(_plan(function, "float32"), _plan(function, "float64")),
        not_applicable={
            Question.SAME_FUNCTION: "each stack is held against the exact value in float64 too",
            Question.FAST_PATH: "a stack has one path for this operation",
        },
    )
    for function in ("exp", "log")
)  # fmt: skip
