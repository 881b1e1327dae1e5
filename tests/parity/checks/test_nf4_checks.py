"""Tier B's checks on stacks that are wrong in one way: the check that is there for it goes red, and its neighbours need not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from parity.checks import nf4, nf4_inputs, nf4_laws
from parity.checks.check import Answered, Case, Check, Question
from parity.reference import nf4 as reference
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

Arrays = Mapping[str, np.ndarray]
Compute = Callable[[str, Mapping[str, Any], Arrays], dict[str, np.ndarray]]
CHECKS = {check.id: check for check in (*nf4.CHECKS, *nf4_laws.CHECKS)}
NORMAL = np.finfo(np.float32).smallest_normal


def right(op: str, attrs: Mapping[str, Any], tensors: Arrays) -> dict[str, np.ndarray]:
    return dict(COMPUTE[op](attrs, tensors))


def flush(array: np.ndarray) -> np.ndarray:
    return np.where(np.abs(array) < NORMAL, np.copysign(np.float32(0), array), array) if array.dtype == np.float32 else array


def flushing(op: str, attrs: Mapping[str, Any], tensors: Arrays) -> dict[str, np.ndarray]:
    """A device that reads and writes subnormal numbers as zero; the reciprocal of a huge absmax among them."""
    flushed = {name: flush(array) for name, array in tensors.items()}
    if op == "nf4_quantize":
        absmax = np.abs(np.pad(flushed["weight"].reshape(-1), (0, -flushed["weight"].size % attrs["block_size"])))
        largest = absmax.reshape(-1, attrs["block_size"]).max(axis=1, keepdims=True)
        gone = np.broadcast_to(np.float32(1) / np.maximum(largest, reference.SMALLEST_SCALE) < NORMAL, (largest.size, attrs["block_size"]))
        answer = right(op, attrs, flushed)
        answer["codes"] = np.where(gone.reshape(-1)[: answer["codes"].size], 7, answer["codes"]).astype(np.uint8)
        return {**answer, "packed": reference.pack(answer["codes"])}
    return {name: flush(array) for name, array in right(op, attrs, flushed).items()}


def with_scale(scale: Callable[[np.ndarray], np.ndarray]) -> Compute:
    """Quantises with another scale of blocks [B, block size] -> [B, 1]."""

    def compute(op: str, attrs: Mapping[str, Any], tensors: Arrays) -> dict[str, np.ndarray]:
        answer = right(op, attrs, tensors)
        if op == "nf4_quantize":
            flat = tensors["weight"].reshape(-1)
            blocks = np.pad(flat, (0, -flat.size % attrs["block_size"])).reshape(-1, attrs["block_size"])
            codes = np.searchsorted(reference.MIDPOINTS, blocks * scale(blocks), side="left").astype(np.uint8).reshape(-1)[: flat.size]
            answer |= {"codes": codes, "packed": reference.pack(codes)}
        return answer

    return compute


def largest_of(blocks: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(blocks).max(axis=1, keepdims=True), reference.SMALLEST_SCALE)


def swapped_nibbles(op: str, attrs: Mapping[str, Any], tensors: Arrays) -> dict[str, np.ndarray]:
    answer = right(op, attrs, tensors)
    return answer | {"packed": answer["packed"] << 4 | answer["packed"] >> 4} if "packed" in answer else answer


def failing(check: Check, case: Case, compute: Compute) -> list[str]:
    (plan,) = [plan for plan in check.plans if plan.question is Question.PRECISION]
    answers = [compute(request.op, request.attrs, request.tensors) for request in plan.requests(case)]
    comparisons = plan.judge(case, [Answered(stack="s", capabilities=CAPABILITIES, answers=answers)], 1e-9)
    return [comparison.tensor for comparison in comparisons if not comparison.passed]


@pytest.mark.parametrize("kind", nf4_inputs.SUBNORMAL)
def test_a_device_that_flushes_fails_where_subnormal_numbers_are_met(kind: str) -> None:
    case = nf4_inputs.weight_case((3, 43, 64), kind, 0)
    assert not failing(CHECKS["b.quantize_subnormal"], case, right)
    assert failing(CHECKS["b.quantize_subnormal"], case, flushing)


def test_a_device_that_flushes_dequantises_subnormal_products_wrong_and_others_right() -> None:
    assert failing(CHECKS["b.dequantize_subnormal"], nf4_inputs.each_code_case("subnormal products", 0), flushing) == ["weight"]
    assert not failing(CHECKS["b.dequantize"], nf4_inputs.each_code_case("hard absmax", 0), flushing)


@pytest.mark.parametrize("kind", nf4_inputs.WEIGHTS)
def test_a_device_that_flushes_passes_everywhere_else(kind: str) -> None:
    for layout in nf4_inputs.LAYOUTS:
        assert not failing(CHECKS["b.quantize"], nf4_inputs.weight_case(layout, kind, 1), flushing)


@pytest.mark.parametrize("layout", nf4_inputs.EACH_BLOCK_SIZE)
def test_each_block_size_sees_another_rounding_of_the_scale(layout: nf4_inputs.Layout) -> None:
    """A reciprocal that is one ulp off, as fast math takes it."""
    case = nf4_inputs.weight_case(layout, "near midpoints", 0)
    off = with_scale(lambda blocks: np.nextafter(np.float32(1) / largest_of(blocks), np.float32(0)))
    assert failing(CHECKS["b.quantize"], case, off)
    assert not failing(CHECKS["b.quantize"], case, with_scale(lambda blocks: np.float32(1) / largest_of(blocks)))


BROKEN: dict[str, tuple[Compute, str]] = {
    "an absmax that is floored": (with_scale(lambda blocks: np.float32(1) / np.maximum(largest_of(blocks), np.float32(1e-3))), "scaled"),
    "one scale for all blocks": (with_scale(lambda blocks: np.float32(1) / largest_of(blocks).max()), "quantise(dequantise(q))"),
    "a scale that leaks into the next block": (
        with_scale(lambda blocks: np.float32(1) / np.maximum(largest_of(blocks), np.roll(largest_of(blocks), 1) / 2)), "permuted"
    ),
    "nibbles swapped": (swapped_nibbles, "packed holds the codes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_law_sees_it(name: str) -> None:
    wrong, law = BROKEN[name]
    check = CHECKS["b.laws"]
    assert check.fixed_cases is not None
    cases = list(check.fixed_cases())
    assert not any(failing(check, case, right) for case in cases)
    assert any(tensor.startswith(law) for case in cases for tensor in failing(check, case, wrong))
