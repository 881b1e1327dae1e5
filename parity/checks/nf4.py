"""Tier B: NF4 bit for bit, then the dequantised weight through an LM-shaped linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from contract.worker.operation import NESTED_BLOCK_SIZE
from parity.checks import real_weights, strategies
from parity.checks.check import Answered, Arrays, Case, Check, Plan, Question, Request
from parity.judge import bounds
from parity.judge.verdict import Comparison, identical, within
from parity.reference import nf4, products

Layout = tuple[int, int, int]

LAYOUTS: tuple[Layout, ...] = (
    (1, 1, 64), (3, 5, 64), (13, 8, 64), (8, 16, 64), (64, 64, 64), (7, 96, 32), (60, 160, 64), (64, 576, 128), (5, 33, 256),
    (3, 1400, 4096), (130, 160, 64),
)  # fmt: skip
"""(out_features, in_features, block size): whole blocks and tails, odd counts, a last dimension that is a multiple of
16 and not of the block, more than 256 blocks."""

HARD_LAYOUTS: tuple[Layout, ...] = ((64, 64, 64), (13, 8, 64), (130, 160, 64))
HARD_SEEDS = 3
ABSMAX_COUNTS = (1, 7, 256, 257, 700)

NF4_ARITHMETIC = "bit for bit: NF4 is defined by its float32 roundings (arXiv:2305.14314)"
NO_FAST_PATH = "a stack has one path for this operation"


def _gaussian(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    return rng.standard_normal(blocks.shape) * 0.05


def _near_midpoints(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    """Within 2 ulp of a threshold, on purpose: where a different rounding gives another code."""
    absmax = rng.uniform(0.01, 3.0, (blocks.shape[0], 1)).astype(np.float32)
    values = (rng.choice(nf4.MIDPOINTS, blocks.shape) * absmax).astype(np.float32)
    steps = rng.integers(-2, 3, blocks.shape)
    values = (values.view(np.int32) + steps).astype(np.int32).view(np.float32)
    values[:, 0] = absmax[:, 0]
    return values


def _zero_blocks(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    values = _gaussian(rng, blocks)
    values[rng.integers(0, 2, blocks.shape[0]) == 0] = 0.0
    values[-1] = 0.0
    return values


def _wide(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    return _gaussian(rng, blocks) * 10.0 ** rng.uniform(-30, 30, (blocks.shape[0], 1))


def _equal(rng: np.random.Generator, blocks: np.ndarray) -> np.ndarray:
    return np.full(blocks.shape, rng.uniform(-1, 1))


WEIGHTS: dict[str, Callable[[np.random.Generator, np.ndarray], np.ndarray]] = {
    "all equal": _equal,
    "gaussian": _gaussian,
    "near midpoints": _near_midpoints,
    "zero blocks": _zero_blocks,
    "wide range": _wide,
}


def _weight(rng: np.random.Generator, layout: Layout, kind: str) -> np.ndarray:
    rows, columns, block_size = layout
    blocks = np.empty((-(-rows * columns // block_size), block_size))
    return WEIGHTS[kind](rng, blocks).astype(np.float32).reshape(-1)[: rows * columns].reshape(rows, columns)


@st.composite
def _weights(draw: st.DrawFn) -> Case:
    layout, kind = draw(st.sampled_from(LAYOUTS)), draw(st.sampled_from(list(WEIGHTS)))
    return _weight_case(layout, kind, draw(strategies.SEEDS))


def _weight_case(layout: Layout, kind: str, seed: int) -> Case:
    return Case(
        name=f"{layout[0]} x {layout[1]}, block {layout[2]}, {kind}, seed {seed}",
        inputs={"float32": {"weight": _weight(np.random.default_rng(seed), layout, kind)}},
        attrs={"block_size": layout[2]},
    )


def _hard_and_real_weights() -> Iterator[Case]:
    """Every threshold approached from both sides, in whole blocks and in a tail; then a real checkpoint's weights."""
    for layout in HARD_LAYOUTS:
        yield _weight_case(layout, "near midpoints", 0)
    for reference in real_weights.references():
        yield Case(
            name=f"{real_weights.MODEL} {reference.tensor}", real=reference,
            inputs={"float32": {"weight": real_weights.weight(reference)}}, attrs={"block_size": real_weights.BLOCK_SIZE},
        )  # fmt: skip


@st.composite
def _packed(draw: st.DrawFn) -> Case:
    layout, seed = draw(st.sampled_from(LAYOUTS)), draw(strategies.SEEDS)
    rng = np.random.default_rng(seed)
    return _packed_case(f"random codes, seed {seed}", layout, _random_packed(rng, layout), _random_absmax(rng, layout))


def _random_packed(rng: np.random.Generator, layout: Layout) -> np.ndarray:
    return nf4.pack(rng.integers(0, 16, layout[0] * layout[1]).astype(np.uint8))


def _random_absmax(rng: np.random.Generator, layout: Layout) -> np.ndarray:
    absmax = np.abs(rng.standard_normal(-(-layout[0] * layout[1] // layout[2]))).astype(np.float32)
    absmax[rng.integers(0, absmax.size)] = 0.0
    return absmax


def _packed_case(name: str, layout: Layout, packed: np.ndarray, absmax: np.ndarray) -> Case:
    rows, columns, block_size = layout
    return Case(
        name=f"{rows} x {columns}, block {block_size}, {name}",
        inputs={"float32": {"packed": packed, "absmax": absmax}},
        attrs={"block_size": block_size, "out_features": rows, "in_features": columns},
    )


def _real_packed() -> Iterator[Case]:
    for reference in real_weights.references():
        codes = real_weights.quantized(reference)
        rows, columns = real_weights.weight(reference).shape
        case = _packed_case(reference.tensor, (rows, columns, real_weights.BLOCK_SIZE), codes.packed, codes.absmax)
        yield Case(name=f"{real_weights.MODEL} {reference.tensor}", inputs=case.inputs, attrs=case.attrs, real=reference)


@st.composite
def _absmax(draw: st.DrawFn) -> Case:
    count, seed = draw(st.sampled_from(ABSMAX_COUNTS)), draw(strategies.SEEDS)
    kind = draw(st.sampled_from(("all equal", "random", "near midpoints", "wide range")))
    rng = np.random.default_rng(seed)
    if kind == "near midpoints":
        return _near_dynamic_midpoints(rng, count)
    return _absmax_case(f"{count} blocks, {kind}, seed {seed}", _absmax_values(rng, count, kind))


def _absmax_values(rng: np.random.Generator, count: int, kind: str) -> np.ndarray:
    if kind == "all equal":
        return np.full(count, rng.uniform(0.01, 1), dtype=np.float32)
    if kind == "wide range":
        return (10.0 ** rng.uniform(-6, 3, count)).astype(np.float32)
    if kind == "random":
        return np.abs(rng.standard_normal(count)).astype(np.float32)
    raise AssertionError(f"no such kind: {kind}")


def _near_dynamic_midpoints(rng: np.random.Generator, count: int) -> Case:
    """Values within 2 ulp of the dynamic map's thresholds, either sign, so with an offset of 0: what nesting sees after the offset."""
    groups = -(-count // NESTED_BLOCK_SIZE)
    largest = rng.uniform(0.01, 3.0, (groups, 1)).astype(np.float32)
    values = (rng.choice(nf4.DYNAMIC_MIDPOINTS, (groups, NESTED_BLOCK_SIZE)) * largest).astype(np.float32)
    values = (values.view(np.int32) + rng.integers(-2, 3, values.shape)).astype(np.int32).view(np.float32)
    values[:, 0] = largest[:, 0]
    return _absmax_case(f"{count} blocks, near midpoints", values.reshape(-1)[:count], offset=np.asarray(0, dtype=np.float32))


def _absmax_case(name: str, absmax: np.ndarray, *, offset: np.ndarray | None = None) -> Case:
    offset = np.asarray(absmax.mean(dtype=np.float64), dtype=np.float32) if offset is None else offset
    codes, nested = nf4.nest(absmax, offset)
    tensors = {"absmax": absmax, "offset": offset, "absmax_codes": codes, "nested_absmax": nested}
    return Case(name=name, inputs={"float32": tensors})


def _hard_and_real_absmax() -> Iterator[Case]:
    """Every threshold of the dynamic map approached from both sides; then a real checkpoint's absmax."""
    for seed in range(HARD_SEEDS):
        yield _near_dynamic_midpoints(np.random.default_rng(seed), 700)
    for reference in real_weights.references():
        case = _absmax_case(f"{real_weights.MODEL} {reference.tensor}", real_weights.quantized(reference).absmax)
        yield Case(name=case.name, inputs=case.inputs, real=reference)


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
    id: str, title: str, op: str, plans: tuple[Plan, ...], cases: st.SearchStrategy[Case], fixed: Callable[[], Iterator[Case]], hard: int
) -> Check:
    return Check(
        id=id, tier="B", title=title, operations=(op,), plans=plans, cases=cases, fixed_cases=fixed,
        fixed_count=hard + real_weights.COUNT,
        not_applicable={Question.FAST_PATH: NO_FAST_PATH},
    )  # fmt: skip


CHECKS: tuple[Check, ...] = (
    _check(
        "b.quantize", "NF4 codes, packing and absmax", "nf4_quantize",
        _bit_exact("nf4_quantize", ("weight",), _quantize), _weights(), _hard_and_real_weights, len(HARD_LAYOUTS),
    ),
    _check(
        "b.offset", "the mean that double quantisation takes off absmax", "nf4_offset",
        _OFFSET_PLANS, _absmax(), _hard_and_real_absmax, HARD_SEEDS,
    ),
    _check(
        "b.nest", "8-bit codes of absmax, given the offset", "nf4_nest",
        _bit_exact("nf4_nest", ("absmax", "offset"), _nest), _absmax(), _hard_and_real_absmax, HARD_SEEDS,
    ),
    _check(
        "b.unnest", "absmax from its 8-bit codes", "nf4_unnest",
        _bit_exact("nf4_unnest", ("absmax_codes", "nested_absmax", "offset"), _unnest), _absmax(), _hard_and_real_absmax, HARD_SEEDS,
    ),
    _check(
        "b.dequantize", "the dequantised weight", "nf4_dequantize",
        _bit_exact("nf4_dequantize", ("packed", "absmax"), _dequantize), _packed(), _real_packed, 0,
    ),
)  # fmt: skip
