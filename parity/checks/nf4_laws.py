"""Tier B: what must hold of NF4 whatever it is, each stack alone, bit for bit.

    quantise(dequantise(q)) = q          where each block holds a code of +-1
    w 2^k                                the same codes; absmax 2^k; dequantised, the weight 2^k
    blocks in another order              codes, absmax and weights in that order

Powers of two are exact as long as nothing leaves the normal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st

from parity.checks import nf4_inputs, strategies
from parity.checks.check import Answered, Case, Check, Plan, Question, Request
from parity.judge.verdict import Comparison, identical
from parity.reference import nf4

BLOCKS = 4
BLOCK_SIZES = tuple(layout[2] for layout in nf4_inputs.EACH_BLOCK_SIZE)
EXPONENTS = (-40, -1, 1, 17)
ORDERS = ((1, 0, 2, 3), (3, 1, 2, 0), (2, 3, 1, 0))
"""No shifts: what leaks from a block to the next would move with it."""
COST = 10
LAW = "a law, bit for bit"
REASON = "a law is asked of each stack alone"


@st.composite
def _drawn(draw: st.DrawFn) -> Case:
    return _case(draw(st.sampled_from(BLOCK_SIZES)), draw(st.sampled_from(EXPONENTS)), draw(strategies.SEEDS))


def _each_block_size() -> Iterator[Case]:
    for index, block_size in enumerate(BLOCK_SIZES):
        yield _case(block_size, EXPONENTS[index % len(EXPONENTS)], index)


def _case(block_size: int, exponent: int, seed: int) -> Case:
    """A weight near midpoints, and codes of which each block has a +-1 somewhere; [BLOCKS, block size] each, so rows are blocks."""
    rng = np.random.default_rng(seed)
    shape = (BLOCKS, block_size)
    order = np.array(ORDERS[seed % len(ORDERS)])
    weight = nf4_inputs.near_midpoints(rng, shape).astype(np.float32)
    codes = rng.integers(0, 16, shape).astype(np.uint8)
    codes[np.arange(BLOCKS), rng.integers(0, block_size, BLOCKS)] = rng.choice(np.array([0, 15]), BLOCKS)
    absmax = rng.uniform(0.01, 3.0, BLOCKS).astype(np.float32)
    packed = nf4.pack(codes.reshape(-1))
    scale = np.float32(2.0**exponent)
    tensors = {
        "weight": weight, "weight_scaled": weight * scale, "weight_permuted": weight[order],
        "dequantized": nf4.dequantize(packed, absmax, block_size, shape),
        "packed": packed, "packed_permuted": nf4.pack(codes[order].reshape(-1)),
        "absmax": absmax, "absmax_scaled": absmax * scale, "absmax_permuted": absmax[order],
    }  # fmt: skip
    return Case(
        name=f"{BLOCKS} blocks of {block_size}, times 2^{exponent}, blocks {order.tolist()}, seed {seed}",
        inputs={"float32": tensors},
        attrs={"block_size": block_size, "exponent": exponent, "order": order.tolist()},
    )


def _requests(case: Case) -> tuple[Request, ...]:
    tensors, block_size = case.inputs["float32"], case.attrs["block_size"]
    shape = {"out_features": BLOCKS, "in_features": block_size}

    def quantize(weight: str) -> Request:
        return Request(op="nf4_quantize", attrs={"block_size": block_size}, tensors={"weight": tensors[weight]})

    def dequantize(packed: str, absmax: str) -> Request:
        attrs = {"block_size": block_size, **shape}
        return Request(op="nf4_dequantize", attrs=attrs, tensors={"packed": tensors[packed], "absmax": tensors[absmax]})

    return (
        *(quantize(name) for name in ("weight", "weight_scaled", "weight_permuted", "dequantized")),
        dequantize("packed", "absmax"), dequantize("packed", "absmax_scaled"), dequantize("packed_permuted", "absmax_permuted"),
    )  # fmt: skip


def _judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    plain, scaled, permuted, again, weight, weight_scaled, weight_permuted = answered[0].answers
    tensors, order, scale = case.inputs["float32"], case.attrs["order"], np.float32(2.0 ** case.attrs["exponent"])
    codes, per_block = plain["codes"].reshape(BLOCKS, -1), plain["packed"].reshape(BLOCKS, -1)
    count = plain["codes"].size
    laws = {
        "quantise(dequantise(q)): codes": (again["codes"], nf4.unpack(tensors["packed"], count)),
        "quantise(dequantise(q)): packed": (again["packed"], tensors["packed"]),
        "quantise(dequantise(q)): absmax": (again["absmax"], tensors["absmax"]),
        "scaled: codes": (scaled["codes"], plain["codes"]),
        "scaled: packed": (scaled["packed"], plain["packed"]),
        "scaled: absmax": (scaled["absmax"], plain["absmax"] * scale),
        "scaled: weight": (weight_scaled["weight"], weight["weight"] * scale),
        "permuted: codes": (permuted["codes"], codes[order].reshape(-1)),
        "permuted: packed": (permuted["packed"], per_block[order].reshape(-1)),
        "permuted: absmax": (permuted["absmax"], plain["absmax"][order]),
        "permuted: weight": (weight_permuted["weight"], weight["weight"][order]),
        "packed holds the codes": (nf4.unpack(plain["packed"], count), plain["codes"]),
    }
    return [identical(law, observed, expected, LAW) for law, (observed, expected) in laws.items()]


CHECKS: tuple[Check, ...] = (
    Check(
        id="b.laws", tier="B", title="laws of NF4", operations=("nf4_quantize", "nf4_dequantize"), cases=_drawn(), cost=COST,
        fixed_cases=_each_block_size, fixed_count=len(BLOCK_SIZES),
        plans=(Plan(question=Question.PRECISION, dtype="float32", requests=_requests, judge=_judge),),
        not_applicable={Question.SAME_FUNCTION: REASON, Question.FAST_PATH: REASON},
    ),
)  # fmt: skip
