"""Tier A: the declared worst error of each elementary function, verified over the range that is used; and its special values.

A subnormal argument may be read as zero: then the answer is the function's value there, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from contract.worker.capabilities import Elementary, Function
from parity.checks import strategies
from parity.checks.check import Answered, Case, Check, Judge, Plan, Question, Request
from parity.checks.elementary_domains import DOMAINS, points
from parity.checks.primitive import NO_FAST_PATH
from parity.judge import bounds
from parity.judge.verdict import Comparison, at_most, identical, within
from parity.reference import elementary

POINTS = {"float32": 4096, "float64": 256}
GRID_POINTS = {"float32": 2**19, "float64": 2**12}
"""A float64 point costs an evaluation to 120 bits, a float32 point one in float64."""

COST = 2
NOT_APPLICABLE = {
    Question.SAME_FUNCTION: "each stack is held against the exact value in float64 too",
    Question.FAST_PATH: NO_FAST_PATH,
}


@st.composite
def _drawn(draw: st.DrawFn, function: Function) -> Case:
    return _case(function, POINTS, draw(strategies.SEEDS))


def _case(function: Function, counts: dict[str, int], seed: int, *, grid: bool = False) -> Case:
    rng = np.random.default_rng(seed)
    counts = {dtype: count for dtype, count in counts.items() if dtype in DOMAINS[function].ranges}
    inputs = {dtype: {"x": points(function, dtype, count, rng, grid=grid)} for dtype, count in counts.items()}
    kind = "a grid" if grid else f"seed {seed}"
    return Case(name=f"{function} at {counts} points, {kind}", inputs=inputs, attrs={"function": function})


def _grid(function: Function) -> Callable[[], Iterator[Case]]:
    return lambda: iter([_case(function, GRID_POINTS, 0, grid=True)])


def _zoom(case: Case, where: tuple[int, ...]) -> Case:
    """The one failing point, in each dtype's grid the one of that index."""
    inputs = {dtype: {"x": tensors["x"][where[0] : where[0] + 1]} for dtype, tensors in case.inputs.items()}
    return Case(name=f"point {where[0]} of: {case.name}", inputs=inputs, attrs=case.attrs)


def _judge(dtype: str) -> Judge:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        function, x, y = case.attrs["function"], case.inputs[dtype]["x"], answered[0].answers[0]["y"]
        declared = _declaration(answered[0], function, dtype)
        exact = case.once(dtype, lambda: elementary.evaluate(function, x))
        error = np.where(_read_as_zero(function, x, y), 0.0, elementary.error_in_ulp(exact, y))
        bound = bounds.elementary(declared, exact.ulp)
        return [
            _in_ulp(error, bound, y, exact.value),
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


def _in_ulp(error: np.ndarray, bound: bounds.Bound, y: np.ndarray, exact: np.ndarray) -> Comparison:
    """The error in ulp, held against its bound, and the values at the point that has least room."""
    judged = within("y", error, np.zeros_like(error), bound, unit="ulp")
    return replace(judged, got=float(y[judged.where]), wanted=float(exact[judged.where]))


def _read_as_zero(function: Function, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where a subnormal argument got the answer of zero (parity/reference/running_error.py allows for it in what is built on it)."""
    at_zero = elementary.in_float64(function, np.zeros(1)).astype(y.dtype)
    return np.asarray((np.abs(x) < np.finfo(x.dtype).smallest_normal) & (y == at_zero))


def _declaration(one: Answered, function: Function, dtype: str) -> Elementary:
    """The stack's declaration over the whole range.

    Raises:
        ValueError: it declares none, or one for a part of the range only.
    """
    low, high = DOMAINS[function].ranges[dtype]
    ranges = []
    for declared in one.elementary:
        if (declared.function, declared.dtype) == (function, dtype):
            if declared.low <= low and high <= declared.high:
                return declared
            ranges.append(f"[{declared.low:g}, {declared.high:g}]")
    instead = f", but on {', '.join(ranges)}" if ranges else ""
    raise ValueError(
        f"{one.stack} declares no error of {function} in {dtype} on [{low:g}, {high:g}]{instead}; add it to its capabilities.json"
    )


def _request(function: Function, dtype: str, x: np.ndarray) -> Request:
    return Request(op="elementary", attrs={"function": function, "dtype": dtype}, tensors={"x": x})


def _plan(function: Function, dtype: str) -> Plan:
    def requests(case: Case) -> tuple[Request, ...]:
        return (_request(function, dtype, case.inputs[dtype]["x"]),)

    return Plan(question=Question.PRECISION, dtype=dtype, requests=requests, judge=_judge(dtype))


SPECIAL_REPEATS = 3
SPECIAL_COST = 20
CLASSES = "class and sign (IEEE 754): 0 NaN, 1 zero, 2 finite, 3 infinite"


@st.composite
def _special(draw: st.DrawFn) -> Case:
    seed = draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    inputs: dict[str, dict[str, np.ndarray]] = {
        dtype: {function: _special_arguments(function, rng).astype(dtype) for function in _functions(dtype)}
        for dtype in ("float32", "float64")
    }
    return Case(name=f"infinities, NaN and zeros in an order of seed {seed}", inputs=inputs)


def _special_arguments(function: Function, rng: np.random.Generator) -> np.ndarray:
    """Each special value several times, at several places of a vector, as kernels compute its head and tail otherwise; 1 is last."""
    values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, *DOMAINS[function].special, 1.0, 1.0, 1.0])[:8]
    return np.append(rng.permutation(np.tile(values, SPECIAL_REPEATS)), 1.0)


def _functions(dtype: str) -> list[Function]:
    return [function for function, domain in DOMAINS.items() if dtype in domain.ranges]


def _classes(values: np.ndarray) -> np.ndarray:
    """float64 -> the number of CLASSES, of the value's sign; NaN has none."""
    kind = np.select([np.isnan(values), values == 0, np.isfinite(values)], [0, 1, 2], default=3)
    return np.where(np.signbit(values) & (kind > 0), -kind, kind).astype(np.int8)


def _judge_special(dtype: str) -> Judge:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        (one,), comparisons = answered, []
        for function, answer in zip(_functions(dtype), one.answers, strict=True):
            exact = elementary.in_float64(function, case.inputs[dtype][function])
            step = np.spacing(np.abs(exact).astype(dtype)).astype(np.float64)
            declared = bounds.elementary(_declaration(one, function, dtype), step)
            bound = bounds.Bound(declared.limit * step + np.spacing(np.abs(exact)), declared.source)
            comparisons += [
                identical(f"{function}: class and sign", _classes(answer["y"].astype(np.float64)), _classes(exact), CLASSES),
                within(f"{function}: y - exact", answer["y"], exact, bound, special=True),
            ]
        return comparisons

    return judge


def _special_plan(dtype: str) -> Plan:
    def requests(case: Case) -> tuple[Request, ...]:
        return tuple(_request(function, dtype, case.inputs[dtype][function]) for function in _functions(dtype))

    return Plan(question=Question.PRECISION, dtype=dtype, requests=requests, judge=_judge_special(dtype))


CHECKS: tuple[Check, ...] = (
    *(
        Check(
            id=f"a.{function}", tier="A", title=f"{function}, no worse than declared", operations=("elementary",),
            cases=_drawn(function), cost=COST, fixed_cases=_grid(function), fixed_count=1, zoom=_zoom,
            plans=tuple(_plan(function, dtype) for dtype in domain.ranges), not_applicable=NOT_APPLICABLE,
        )
        for function, domain in DOMAINS.items()
    ),
    Check(
        id="a.elementary_special", tier="A", title="infinities, NaN and signed zeros of elementary functions", operations=("elementary",),
        cases=_special(), cost=SPECIAL_COST, plans=(_special_plan("float32"), _special_plan("float64")), not_applicable=NOT_APPLICABLE,
    ),
)  # fmt: skip
