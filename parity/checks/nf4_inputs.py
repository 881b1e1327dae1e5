"""What tier B draws: weights, packed codes, absmax; hard shapes and values.

Shapes come from a palette, since a new one costs a compile in a stack that compiles; simple and small ones stand first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from contract.worker.operation import NESTED_BLOCK_SIZE
from parity.checks import real_weights
from parity.checks.check import Case
from parity.checks.elementary_domains import LINE
from parity.checks.strategies import Fill, signs
from parity.reference import nf4

Layout = tuple[int, int, int]

LAYOUTS: tuple[Layout, ...] = (
    (1, 1, 64), (1, 2, 64), (8, 16, 64), (3, 43, 64), (64, 64, 64), (7, 96, 32), (1, 256, 128), (1, 512, 256), (1, 512, 512),
    (1, 2048, 2048), (1, 4096, 4096), (60, 160, 64), (64, 576, 128), (5, 63, 256), (3, 341, 512),
    (2, 1024, 1024), (5, 820, 2048), (3, 1400, 4096), (130, 160, 64),
)  # fmt: skip
"""(out_features, in_features, block size): every block size, with rows of whole blocks and with tails, one of a single element; one and two
elements in all; odd counts; a last dimension that is a multiple of 16 and not of the block; more than 256 blocks."""

EACH_BLOCK_SIZE: tuple[Layout, ...] = tuple({layout[2]: layout for layout in LAYOUTS if layout[0] > 1}.values())
"""One layout each, the last that has it."""

SQUARE: Layout = (64, 64, 64)
"""As many blocks as a block has elements, and as many rows as columns: a transpose keeps every shape."""

SUBNORMAL_LAYOUTS: tuple[Layout, ...] = ((1, 1, 64), (8, 16, 64), (3, 43, 64), (7, 96, 32), (5, 63, 256), (2, 1024, 1024))

ABSMAX_COUNTS = (1, 255, 256, 257, 700)
NEAR_ABSMAX_SEEDS = 2
ULPS = np.arange(-2, 3)

_SMALLEST, _NORMAL, _LARGEST = (float(getattr(np.finfo(np.float32), name)) for name in ("smallest_subnormal", "smallest_normal", "max"))
_SUBNORMAL_RECIPROCAL = 2.0**126
"""A larger absmax has a subnormal reciprocal."""


def _gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * 0.05


def _negative(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(-np.abs(_gaussian(rng, shape)))


def near_midpoints(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Each midpoint times absmax, and 1 and 2 ulp to either side, where a different rounding gives another code; absmax first."""
    absmax = rng.uniform(0.01, 3.0, (shape[0], 1)).astype(np.float32)
    values = _near(rng, nf4.MIDPOINTS, np.broadcast_to(absmax, shape).reshape(-1), first=0).reshape(shape)
    values[:, 0] = absmax[:, 0] * signs(rng, (shape[0],))
    return values


def _near(rng: np.random.Generator, thresholds: np.ndarray, largest: np.ndarray, *, first: int) -> np.ndarray:
    """A threshold times each of `largest`, up to 2 ulp off: every such pair in turn, from the `first` on, in an order that is drawn."""
    pairs = rng.permutation((first + np.arange(largest.size)) % (thresholds.size * ULPS.size))
    values = (thresholds[pairs // ULPS.size] * largest).astype(np.float32)
    return np.asarray((values.view(np.int32) + ULPS[pairs % ULPS.size]).astype(np.int32).view(np.float32))


def _zero_blocks(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Some blocks of zeros of both signs, the last one among them; zeros of both signs in the others."""
    values = np.where(rng.integers(0, 4, shape) == 0, 0.0, _gaussian(rng, shape))
    values[rng.integers(0, 2, shape[0]) == 0] = 0.0
    values[-1] = 0.0
    return np.asarray(np.copysign(values, signs(rng, shape)))


def _wide(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _gaussian(rng, shape) * 10.0 ** rng.uniform(-30, 30, (shape[0], 1))


def _equal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, rng.uniform(-1, 1))


WEIGHTS: Mapping[str, Fill] = {
    "all equal": _equal,
    "gaussian": _gaussian,
    "near midpoints": near_midpoints,
    "zero blocks": _zero_blocks,
    "wide range": _wide,
    "all negative": _negative,
}
"""Fills of blocks, [blocks, block size], whose absmax is 0 or normal, and so is its reciprocal."""


def _scaled(scales: Callable[[np.random.Generator, int], np.ndarray]) -> Fill:
    """Blocks whose absmax are given."""

    def fill(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        values = rng.uniform(-1, 1, shape)
        values[:, 0] = signs(rng, (shape[0],))
        return np.asarray(values * scales(rng, shape[0])[:, None])

    return fill


def _in_decades(low: float, high: float) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, count: 10.0 ** rng.uniform(np.log10(low), np.log10(high), count)


def _about_the_limit(rng: np.random.Generator, count: int) -> np.ndarray:
    """1e-38, below which another number is inverted, and its neighbours; the smallest normal number and its."""
    centres = rng.choice(np.array([nf4.SMALLEST_SCALE, np.float32(_NORMAL)]), count)
    return np.asarray((centres.view(np.int32) + rng.integers(-2, 3, count)).astype(np.int32).view(np.float32), dtype=np.float64)


def _subnormal_in_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.uniform(-_NORMAL, _NORMAL, shape)
    values[:, 0] = _NORMAL * rng.uniform(1, 4, shape[0])
    return values


SUBNORMAL: Mapping[str, Fill] = {
    "subnormal absmax": _scaled(_in_decades(_SMALLEST, _NORMAL)),
    "absmax about 1e-38": _scaled(_about_the_limit),
    "subnormal weights, a normal absmax": _subnormal_in_normal,
    "a subnormal reciprocal": _scaled(_in_decades(2 * _SUBNORMAL_RECIPROCAL, LINE["float32"][1])),
    "the largest number": _scaled(lambda rng, count: np.full(count, _LARGEST)),
}
"""Fills of blocks in which a weight, an absmax or its reciprocal is subnormal."""


def weight(rng: np.random.Generator, layout: Layout, kind: str) -> np.ndarray:
    """A weight of that kind, float32 [out_features, in_features]."""
    rows, columns, block_size = layout
    blocks = {**WEIGHTS, **SUBNORMAL}[kind](rng, (-(-rows * columns // block_size), block_size))
    return blocks.astype(np.float32).reshape(-1)[: rows * columns].reshape(rows, columns)


def weight_case(layout: Layout, kind: str, seed: int) -> Case:
    """A weight to quantise."""
    return Case(
        name=f"{layout[0]} x {layout[1]}, block {layout[2]}, {kind}, seed {seed}",
        inputs={"float32": {"weight": weight(np.random.default_rng(seed), layout, kind)}},
        attrs={"block_size": layout[2]},
    )


def hard_and_real_weights() -> Iterator[Case]:
    """In every block size each threshold approached from both sides, whole blocks and tails; a square; a real checkpoint's weights."""
    for layout in EACH_BLOCK_SIZE:
        yield weight_case(layout, "near midpoints", 0)
    yield weight_case(SQUARE, "gaussian", 0)
    for reference in real_weights.references():
        yield Case(
            name=f"{real_weights.MODEL} {reference.tensor}", real=reference,
            inputs={"float32": {"weight": real_weights.weight(reference)}}, attrs={"block_size": real_weights.BLOCK_SIZE},
        )  # fmt: skip


def packed_case(name: str, layout: Layout, packed: np.ndarray, absmax: np.ndarray) -> Case:
    """Codes to dequantise."""
    rows, columns, block_size = layout
    return Case(
        name=f"{rows} x {columns}, block {block_size}, {name}",
        inputs={"float32": {"packed": packed, "absmax": absmax}},
        attrs={"block_size": block_size, "out_features": rows, "in_features": columns},
    )


HARD_ABSMAX: Mapping[str, tuple[float, ...]] = {
    "hard absmax": (0.0, 2 * _NORMAL / 0.079, 1e-30, 1 - 2.0**-24, 1.0, 1 + 2.0**-23, 1.5, 2 - 2.0**-23, 2.0**127, _LARGEST),
    "subnormal products": (_SMALLEST, 2 * _SMALLEST, 1e-42, 1e-40, 9.9e-39, 1e-38, _NORMAL - _SMALLEST, _NORMAL, 2 * _NORMAL, 1.4e-37),
}
"""With each of these, the 16 values' products are 0 or normal; or some are subnormal."""

HARD_ABSMAX_LAYOUT: Layout = SQUARE


def each_code_case(kind: str, seed: int) -> Case:
    """Each of the 16 codes times each hard absmax, in an order that is drawn."""
    rng = np.random.default_rng(seed)
    rows, columns, _ = HARD_ABSMAX_LAYOUT
    codes = rng.permuted(np.tile(np.arange(16, dtype=np.uint8), (rows, columns // 16)), axis=1)
    absmax = rng.permutation(np.resize(np.array(HARD_ABSMAX[kind], dtype=np.float32), rows))
    return packed_case(f"each code times {kind}, seed {seed}", HARD_ABSMAX_LAYOUT, nf4.pack(codes.reshape(-1)), absmax)


def each_code_and_real_packed() -> Iterator[Case]:
    """Each code times each hard absmax; every layout, of which the few examples of a short run may miss a block size; then a real
    checkpoint's codes."""
    yield each_code_case("hard absmax", 0)
    for layout in LAYOUTS:
        yield random_packed_case(layout, 0)
    for reference in real_weights.references():
        codes = real_weights.quantized(reference)
        rows, columns = real_weights.weight(reference).shape
        case = packed_case(reference.tensor, (rows, columns, real_weights.BLOCK_SIZE), codes.packed, codes.absmax)
        yield Case(name=f"{real_weights.MODEL} {reference.tensor}", inputs=case.inputs, attrs=case.attrs, real=reference)


def random_packed_case(layout: Layout, seed: int) -> Case:
    """Random codes and absmax, one of them 0."""
    rng = np.random.default_rng(seed)
    packed = nf4.pack(rng.integers(0, 16, layout[0] * layout[1]).astype(np.uint8))
    absmax = np.abs(rng.standard_normal(-(-layout[0] * layout[1] // layout[2]))).astype(np.float32)
    absmax[rng.integers(0, absmax.size)] = 0.0
    return packed_case(f"random codes, seed {seed}", layout, packed, absmax)


ABSMAX: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "all equal": lambda rng, count: np.full(count, rng.uniform(0.01, 1)),
    "all zero": lambda rng, count: np.zeros(count),
    "random": lambda rng, count: np.abs(rng.standard_normal(count)),
    "wide range": lambda rng, count: 10.0 ** rng.uniform(-6, 3, count),
}


def absmax_case(name: str, absmax: np.ndarray, *, offset: np.ndarray | None = None) -> Case:
    """absmax to nest, its offset (its mean unless given), and the codes to unnest."""
    offset = np.asarray(absmax.mean(dtype=np.float64), dtype=np.float32) if offset is None else offset
    codes, nested = nf4.nest(absmax, offset)
    tensors = {"absmax": absmax, "offset": offset, "absmax_codes": codes, "nested_absmax": nested}
    return Case(name=name, inputs={"float32": tensors})


def drawn_absmax_case(count: int, kind: str, seed: int) -> Case:
    """absmax of a kind; or within 2 ulp of the dynamic map's thresholds, where `kind` is so."""
    rng = np.random.default_rng(seed)
    if kind == "near midpoints":
        return near_absmax_case(rng, count, int(rng.integers(0, nf4.DYNAMIC_MIDPOINTS.size * ULPS.size)))
    return absmax_case(f"{count} blocks, {kind}, seed {seed}", ABSMAX[kind](rng, count).astype(np.float32))


def near_absmax_case(rng: np.random.Generator, count: int, first: int) -> Case:
    """Values within 2 ulp of the dynamic map's thresholds, either sign, so with an offset of 0: what nesting sees after the offset."""
    absmax = np.repeat(rng.uniform(0.01, 3.0, -(-count // NESTED_BLOCK_SIZE)).astype(np.float32), NESTED_BLOCK_SIZE)[:count]
    others = np.arange(count) % NESTED_BLOCK_SIZE > 0
    absmax[others] = _near(rng, nf4.DYNAMIC_MIDPOINTS, absmax[others], first=first)
    return absmax_case(f"{count} blocks, near midpoints", absmax, offset=np.asarray(0, dtype=np.float32))


def hard_and_real_absmax() -> Iterator[Case]:
    """Every threshold of the dynamic map approached from both sides; then a real checkpoint's absmax."""
    for seed in range(NEAR_ABSMAX_SEEDS):
        first = seed * nf4.DYNAMIC_MIDPOINTS.size * ULPS.size // NEAR_ABSMAX_SEEDS
        yield near_absmax_case(np.random.default_rng(seed), ABSMAX_COUNTS[-1], first)
    for reference in real_weights.references():
        case = absmax_case(f"{real_weights.MODEL} {reference.tensor}", real_weights.quantized(reference).absmax)
        yield Case(name=case.name, inputs=case.inputs, real=reference)
