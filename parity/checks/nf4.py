"""Tier B: NF4 bit for bit: codes, packing, absmax, nested absmax, the dequantised weight.

What meets subnormal numbers has checks of its own: a device that flushes them may need a waiver there, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from parity.checks import nf4_inputs, real_weights, strategies
from parity.checks.check import Answered, Arrays, Case, Check, Plan, Question, Request
from parity.checks.primitive import NO_FAST_PATH
from parity.judge import bounds
from parity.judge.verdict import Comparison, identical, within
from parity.reference import nf4, products

NF4_ARITHMETIC = "bit for bit: NF4 is defined by its float32 roundings (arXiv:2305.14314)"
SUBNORMAL_COST = 5


@st.composite
def _weights(draw: st.DrawFn) -> Case:
    layout, kind = draw(st.sampled_from(nf4_inputs.LAYOUTS)), draw(st.sampled_from(list(nf4_inputs.WEIGHTS)))
    return nf4_inputs.weight_case(layout, kind, draw(strategies.SEEDS))


@st.composite
def _subnormal_weights(draw: st.DrawFn) -> Case:
    layout, kind = draw(st.sampled_from(nf4_inputs.SUBNORMAL_LAYOUTS)), draw(st.sampled_from(list(nf4_inputs.SUBNORMAL)))
    return nf4_inputs.weight_case(layout, kind, draw(strategies.SEEDS))


@st.composite
def _packed(draw: st.DrawFn) -> Case:
    return nf4_inputs.random_packed_case(draw(st.sampled_from(nf4_inputs.LAYOUTS)), draw(strategies.SEEDS))


@st.composite
def _absmax(draw: st.DrawFn) -> Case:
    kind = draw(st.sampled_from((*nf4_inputs.ABSMAX, "near midpoints")))
    return nf4_inputs.drawn_absmax_case(draw(st.sampled_from(nf4_inputs.ABSMAX_COUNTS)), kind, draw(strategies.SEEDS))


def _subnormal_fixed() -> Iterator[Case]:
    """Each kind once, in blocks of 64 with a tail."""
    for kind in nf4_inputs.SUBNORMAL:
        yield nf4_inputs.weight_case(nf4_inputs.SUBNORMAL_LAYOUTS[2], kind, 0)


def _bit_exact(op: str, inputs: tuple[str, ...], reference: Callable[[Case], dict[str, np.ndarray]]) -> tuple[Plan, ...]:
    """Each stack against the reference, and the stacks against each other, on one request."""

    def requests(case: Case) -> tuple[Request, ...]:
        references = {"weight": case.real} if case.real is not None and "weight" in inputs else {}
        return (Request(op=op, attrs=case.attrs, tensors={name: case.inputs["float32"][name] for name in inputs}, references=references),)

    def precision(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        exact = case.once(op, lambda: reference(case))
        return [identical(name, answered[0].answers[0][name], exact[name], NF4_ARITHMETIC) for name in exact]

    def same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        first, second = (one.answers[0] for one in answered)
        return [identical(name, first[name], second[name], NF4_ARITHMETIC) for name in first]

    return (
        Plan(question=Question.SAME_FUNCTION, dtype="float32", requests=requests, judge=same_function),
        Plan(question=Question.PRECISION, dtype="float32", requests=requests, judge=precision),
    )


def _quantize(case: Case) -> dict[str, np.ndarray]:
    if case.real is not None:
        exact = real_weights.quantized(case.real)
    else:
        exact = nf4.quantize(case.inputs["float32"]["weight"], case.attrs["block_size"])
    return {"codes": exact.codes, "packed": exact.packed, "absmax": exact.absmax}


def _nest(case: Case) -> dict[str, np.ndarray]:
    tensors = case.inputs["float32"]
    return {"absmax_codes": tensors["absmax_codes"], "nested_absmax": tensors["nested_absmax"]}


def _unnest(case: Case) -> dict[str, np.ndarray]:
    tensors = case.inputs["float32"]
    return {"absmax": nf4.unnest(tensors["absmax_codes"], tensors["nested_absmax"], tensors["offset"])}


def _dequantize(case: Case) -> dict[str, np.ndarray]:
    if case.real is not None:
        return {"weight": real_weights.dequantized(case.real)}
    tensors, attrs = case.inputs["float32"], case.attrs
    shape = (attrs["out_features"], attrs["in_features"])
    return {"weight": nf4.dequantize(tensors["packed"], tensors["absmax"], attrs["block_size"], shape)}


def _offset_requests(case: Case) -> tuple[Request, ...]:
    return (Request(op="nf4_offset", attrs={}, tensors={"absmax": case.inputs["float32"]["absmax"]}),)


def _offset_bound(tensors: Arrays) -> tuple[np.ndarray, bounds.Bound]:
    """A mean is a sum of products with 1 / count, and one rounding more, for the division (a bias of zero)."""
    count = tensors["absmax"].size
    exact = products.product(np.full((1, count), 1 / count), tensors["absmax"][:, None], np.zeros(1), shape=())
    return exact.value, bounds.sums(exact, "float32")


def _offset_precision(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    exact, bound = _offset_bound(case.inputs["float32"])
    return [within("offset", answered[0].answers[0]["offset"], exact, bound)]


def _offset_same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    _, bound = _offset_bound(case.inputs["float32"])
    first, second = (one.answers[0]["offset"] for one in answered)
    return [within("offset", first, second, bounds.Bound(2 * bound.limit, f"twice {bound.source}"))]


_OFFSET_PLANS = (
    Plan(question=Question.SAME_FUNCTION, dtype="float32", requests=_offset_requests, judge=_offset_same_function),
    Plan(question=Question.PRECISION, dtype="float32", requests=_offset_requests, judge=_offset_precision),
)


def _check(
    id: str,
    title: str,
    op: str,
    plans: tuple[Plan, ...],
    cases: st.SearchStrategy[Case],
    fixed: Callable[[], Iterator[Case]] | None = None,
    fixed_count: int = 0,
    cost: int = 1,
) -> Check:
    return Check(
        id=id, tier="B", title=title, operations=(op,), plans=plans, cases=cases, cost=cost, fixed_cases=fixed, fixed_count=fixed_count,
        not_applicable={Question.FAST_PATH: NO_FAST_PATH},
    )  # fmt: skip


_QUANTIZE = _bit_exact("nf4_quantize", ("weight",), _quantize)
_DEQUANTIZE = _bit_exact("nf4_dequantize", ("packed", "absmax"), _dequantize)
_REAL_ABSMAX = (nf4_inputs.hard_and_real_absmax, nf4_inputs.NEAR_ABSMAX_SEEDS + real_weights.COUNT)

CHECKS: tuple[Check, ...] = (
    _check(
        "b.quantize", "NF4 codes, packing and absmax", "nf4_quantize", _QUANTIZE, _weights(),
        nf4_inputs.hard_and_real_weights, len(nf4_inputs.EACH_BLOCK_SIZE) + 1 + real_weights.COUNT,
    ),
    _check(
        "b.quantize_subnormal", "NF4 of subnormal weights, subnormal absmax, and absmax whose reciprocal is subnormal", "nf4_quantize",
        _QUANTIZE, _subnormal_weights(), _subnormal_fixed, len(nf4_inputs.SUBNORMAL), SUBNORMAL_COST,
    ),
    _check(
        "b.offset", "the mean that double quantisation takes off absmax", "nf4_offset", _OFFSET_PLANS, _absmax(), *_REAL_ABSMAX
    ),
    _check(
        "b.nest", "8-bit codes of absmax, given the offset", "nf4_nest",
        _bit_exact("nf4_nest", ("absmax", "offset"), _nest), _absmax(), *_REAL_ABSMAX,
    ),
    _check(
        "b.unnest", "absmax from its 8-bit codes", "nf4_unnest",
        _bit_exact("nf4_unnest", ("absmax_codes", "nested_absmax", "offset"), _unnest), _absmax(), *_REAL_ABSMAX,
    ),
    _check(
        "b.dequantize", "the dequantised weight", "nf4_dequantize", _DEQUANTIZE, _packed(),
        nf4_inputs.each_code_and_real_packed, 1 + len(nf4_inputs.LAYOUTS) + real_weights.COUNT,
    ),
    _check(
        "b.dequantize_subnormal", "dequantised weights that are subnormal", "nf4_dequantize", _DEQUANTIZE,
        st.builds(nf4_inputs.each_code_case, st.just("subnormal products"), strategies.SEEDS), cost=4 * SUBNORMAL_COST,
    ),
)  # fmt: skip
