"""Tier B: an NF4 weight through an LM-shaped linear, by the production path and by the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from parity.checks import nf4_inputs, real_weights, strategies
from parity.checks.check import Answered, Case, Check, Plan, Question, Request
from parity.checks.products import either_way
from parity.judge import bounds
from parity.judge.verdict import Comparison, root_mean_square, within
from parity.reference import nf4, products
from parity.reference.products import Sums

TOKENS = 3


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    layout, seed = draw(st.sampled_from(nf4_inputs.LAYOUTS)), draw(strategies.SEEDS)
    return _of_kind(layout, draw(st.sampled_from(("gaussian", "near midpoints", "wide range"))), seed)


def _of_kind(layout: nf4_inputs.Layout, kind: str, seed: int, tokens: int = TOKENS) -> Case:
    rng = np.random.default_rng(seed)
    codes = nf4.quantize(nf4_inputs.weight(rng, layout, kind), layout[2])
    dequantized = nf4.dequantize(codes.packed, codes.absmax, layout[2], layout[:2])
    return _case(f"{layout[0]} x {layout[1]}, block {layout[2]}, {kind}, seed {seed}", rng, codes, dequantized, layout, tokens)


def _case(
    name: str, rng: np.random.Generator, codes: nf4.Quantized, weight: np.ndarray, layout: nf4_inputs.Layout, tokens: int = TOKENS
) -> Case:
    rows, columns, block_size = layout
    activations = strategies.by_dtype(
        {"x": rng.standard_normal((tokens, columns)), "y_bar": rng.standard_normal((tokens, rows)), "bias": rng.standard_normal(rows)}
    )
    activations["float32"] |= {"packed": codes.packed, "absmax": codes.absmax, "weight": weight}
    activations["float64"] |= {"weight": weight.astype(np.float64)}
    return Case(name=name, inputs=activations, attrs={"block_size": block_size, "out_features": rows, "in_features": columns})


def _square_and_real() -> Iterator[Case]:
    """As many tokens as inputs and outputs, so that a transpose of any matrix keeps its shape; then a real checkpoint's weights."""
    yield _of_kind(nf4_inputs.SQUARE, "gaussian", 0, nf4_inputs.SQUARE[0])
    for index, reference in enumerate(real_weights.references()):
        rows, columns = real_weights.weight(reference).shape
        layout = (rows, columns, real_weights.BLOCK_SIZE)
        rng = np.random.default_rng(index)
        case = _case("", rng, real_weights.quantized(reference), real_weights.dequantized(reference), layout)
        yield Case(name=f"{real_weights.MODEL} {reference.tensor}", inputs=case.inputs, attrs=case.attrs, real=reference)


def _production(case: Case) -> Request:
    tensors = {name: case.inputs["float32"][name] for name in ("x", "packed", "absmax", "bias", "y_bar")}
    return Request(op="nf4_linear", attrs={**case.attrs, "dtype": "float32"}, tensors=tensors)


def _plain(dtype: str) -> Callable[[Case], Request]:
    def request(case: Case) -> Request:
        tensors = {name: case.inputs[dtype][name] for name in ("x", "weight", "bias", "y_bar")}
        narrow = {} if dtype == "float32" else {"weight": case.inputs["float32"]["weight"]}
        return Request(op="linear", attrs={"dtype": dtype, "frozen": ["weight", "bias"]}, tensors=tensors, narrow=narrow)

    return request


def _exact(case: Case, dtype: str) -> dict[str, Sums]:
    """The output and the gradient that training needs: the base weight is frozen, its gradient is never taken."""
    tensors = case.inputs[dtype]

    def make() -> dict[str, Sums]:
        weight = case.inputs["float64"]["weight"]
        return {
            "y": products.product(tensors["x"], weight.T, tensors["bias"]),
            "x_grad": products.product(tensors["y_bar"], weight),
        }

    return case.once(dtype, make)


def _precision(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    exact, answer = _exact(case, "float32"), answered[0].answers[0]
    comparisons = [within(name, answer[name], sums.value, bounds.sums(sums, "float32")) for name, sums in exact.items()]
    scale, limit, source = bounds.sums_root_mean_square(exact["y"], "float32", false_alarm)
    return [*comparisons, root_mean_square("y", answer["y"], exact["y"].value, scale, limit, source)]


def _same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    return [either_way(name, answered, bounds.sums(sums, "float64")) for name, sums in _exact(case, "float64").items()]


def _fast_path(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    fast, plain = answered[0].answers
    comparisons = []
    for name, sums in _exact(case, "float32").items():
        each = bounds.sums(sums, "float32")
        comparisons.append(within(name, fast[name], plain[name], bounds.Bound(2 * each.limit, f"twice {each.source}")))
    return comparisons


CHECKS: tuple[Check, ...] = (
    Check(
        id="b.linear", tier="B", title="an NF4 weight through an LM-shaped linear, and its gradient", operations=("nf4_linear", "linear"),
        cases=_drawn(), fixed_cases=_square_and_real, fixed_count=1 + real_weights.COUNT, not_applicable={},
        plans=(
            Plan(
                question=Question.SAME_FUNCTION, dtype="float64", requests=lambda case: (_plain("float64")(case),), judge=_same_function
            ),
            Plan(
                question=Question.PRECISION, dtype="float32", requests=lambda case: (_production(case),), judge=_precision, statistical=1
            ),
            Plan(
                question=Question.FAST_PATH, dtype="float32",
                requests=lambda case: (_production(case), _plain("float32")(case)), judge=_fast_path,
            ),
        ),
    ),
)  # fmt: skip
