"""Tier B's inputs: each hard shape and value is there, and is what it says."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from parity.checks import nf4_inputs, nf4_laws
from parity.reference import nf4 as reference

SEED = 1
NORMAL, LARGEST = (float(getattr(np.finfo(np.float32), name)) for name in ("smallest_normal", "max"))
ALL_STEPS = {(threshold, step) for threshold in range(15) for step in range(-2, 3)}


def weight(layout: nf4_inputs.Layout, kind: str) -> np.ndarray:
    return nf4_inputs.weight(np.random.default_rng(SEED), layout, kind)


def blocks(values: np.ndarray, block_size: int) -> np.ndarray:
    """[blocks, block size], a tail padded with zeros."""
    return np.pad(values.reshape(-1), (0, -values.size % block_size)).reshape(-1, block_size)


def test_layouts_hold_what_hides_bugs() -> None:
    sizes = [(rows * columns, columns, block) for rows, columns, block in nf4_inputs.LAYOUTS]
    assert {block for _, _, block in sizes} == {32, 64, 128, 256, 512, 1024, 2048, 4096}, "every block size that bitsandbytes has"
    assert any(count % block for count, _, block in sizes), "a tail block"
    assert any(count == 1 for count, _, _ in sizes), "one element"
    assert any(count > block and count % block == 1 for count, _, block in sizes), "a tail of one element"
    assert any(columns % 16 == 0 and columns % block for _, columns, block in sizes), "a multiple of 16 and not of the block"
    assert any(-(-count // block) > 256 for count, _, block in sizes), "more than one nested block"
    assert any(count % 2 for count, _, _ in sizes), "an odd count"
    assert {layout[2] for layout in nf4_inputs.EACH_BLOCK_SIZE} == set(nf4_laws.BLOCK_SIZES) == {block for _, _, block in sizes}
    assert set(nf4_inputs.SUBNORMAL_LAYOUTS) <= set(nf4_inputs.LAYOUTS), "no shape of its own to compile"
    assert {1, 255, 256, 257, 700} == set(nf4_inputs.ABSMAX_COUNTS)


@pytest.mark.parametrize("kind", [*nf4_inputs.WEIGHTS, *nf4_inputs.SUBNORMAL])
def test_weights_are_finite(kind: str) -> None:
    for layout in nf4_inputs.LAYOUTS:
        drawn = weight(layout, kind)
        assert drawn.dtype == np.float32
        assert drawn.shape == layout[:2]
        assert np.isfinite(drawn).all()


def pairs_near(values: np.ndarray, largest: np.ndarray, thresholds: np.ndarray) -> set[tuple[int, int]]:
    """(threshold, ulp from its product with absmax) of each value that is one."""
    centres = (thresholds[:, None, None] * largest[None, :, None]).astype(np.float32)
    steps = values.view(np.int32).astype(np.int64)[None] - centres.view(np.int32).astype(np.int64)
    same_sign = np.signbit(values)[None] == np.signbit(centres)
    where = np.nonzero((np.abs(steps) <= 2) & same_sign)
    return {(int(threshold), int(step)) for threshold, step in zip(where[0], steps[where], strict=True)}


@pytest.mark.parametrize("layout", nf4_inputs.EACH_BLOCK_SIZE)
def test_in_each_block_size_each_midpoint_is_approached_by_each_step(layout: nf4_inputs.Layout) -> None:
    """From both sides: an input of each distance up to 2 ulp, at each of the 15 midpoints."""
    hard = islice(nf4_inputs.hard_and_real_weights(), len(nf4_inputs.EACH_BLOCK_SIZE))
    (case,) = [case for case in hard if case.attrs["block_size"] == layout[2]]
    values = blocks(case.inputs["float32"]["weight"], layout[2])
    absmax = np.abs(values).max(axis=1)
    assert pairs_near(values, absmax, reference.MIDPOINTS) >= ALL_STEPS
    assert {-1.0, 1.0} == set(np.sign(values[np.abs(values) == absmax[:, None]])) or len(values) < 4, "absmax of either sign"


def test_each_midpoint_of_the_dynamic_map_is_approached_by_each_step() -> None:
    seen: set[tuple[int, int]] = set()
    near = list(islice(nf4_inputs.hard_and_real_absmax(), nf4_inputs.NEAR_ABSMAX_SEEDS))
    for case in near:
        values = case.inputs["float32"]["absmax"]
        nested = case.inputs["float32"]["nested_absmax"]
        assert case.inputs["float32"]["offset"] == 0
        seen |= pairs_near(blocks(values, 256), nested, reference.DYNAMIC_MIDPOINTS)
    assert seen >= {(threshold, step) for threshold in range(255) for step in range(-2, 3)}


def test_near_midpoints_a_division_gives_other_codes() -> None:
    """What the inputs are for."""
    drawn = weight((64, 64, 64), "near midpoints")
    absmax = np.abs(drawn).max(axis=1, keepdims=True)
    divided = np.searchsorted(reference.MIDPOINTS, drawn / absmax, side="left")
    assert 0.01 < np.mean(divided.reshape(-1) != reference.quantize(drawn, 64).codes) < 0.2


def test_zero_blocks_hold_zeros_of_both_signs() -> None:
    drawn = weight((64, 64, 64), "zero blocks")
    empty = ~drawn.any(axis=1)
    assert empty.any()
    assert not empty.all()
    assert {True, False} == set(np.signbit(drawn[empty]).reshape(-1)) == set(np.signbit(drawn[~empty][drawn[~empty] == 0]))


def test_negative_blocks_are_negative() -> None:
    assert np.all(weight((3, 43, 64), "all negative") < 0)


def test_subnormal_kinds_are_what_they_say() -> None:
    layout = (64, 64, 64)
    absmax = {kind: np.abs(weight(layout, kind)).max(axis=1) for kind in nf4_inputs.SUBNORMAL}
    assert np.all(absmax["subnormal absmax"] < NORMAL)
    assert absmax["subnormal absmax"].min() < 1e-42
    about = absmax["absmax about 1e-38"]
    limit = reference.SMALLEST_SCALE
    assert {np.nextafter(limit, np.float32(0)), limit, np.nextafter(limit, np.float32(1)), np.float32(NORMAL)} <= set(about)
    mixed = np.abs(weight(layout, "subnormal weights, a normal absmax"))
    assert np.all(mixed.max(axis=1) >= NORMAL)
    assert np.mean((mixed > 0) & (mixed < NORMAL)) > 0.9
    assert np.all(np.float32(1) / absmax["a subnormal reciprocal"] < NORMAL)
    assert np.all(absmax["the largest number"] == np.float32(LARGEST))


@pytest.mark.parametrize("kind", nf4_inputs.WEIGHTS)
def test_the_other_kinds_meet_no_subnormal_absmax(kind: str) -> None:
    for layout in nf4_inputs.LAYOUTS:
        absmax = np.abs(blocks(weight(layout, kind), layout[2])).max(axis=1)
        assert np.all((absmax == 0) | ((absmax >= NORMAL) & (absmax <= 2.0**126)))


@pytest.mark.parametrize("kind", nf4_inputs.HARD_ABSMAX)
def test_each_code_meets_each_hard_absmax(kind: str) -> None:
    tensors = nf4_inputs.each_code_case(kind, 0).inputs["float32"]
    codes = reference.unpack(tensors["packed"], 64 * 64).reshape(64, 64)
    wanted = {np.float32(one) for one in nf4_inputs.HARD_ABSMAX[kind]}
    assert {absmax for absmax, row in zip(tensors["absmax"], codes, strict=True) if set(row) == set(range(16))} == wanted
    products = np.abs(reference.dequantize(tensors["packed"], tensors["absmax"], 64, (64, 64)))
    assert np.isfinite(products).all()
    assert bool(np.any((products > 0) & (products < NORMAL))) == (kind == "subnormal products")


def test_all_equal_absmax_leave_nothing_to_nest() -> None:
    for kind in ("all equal", "all zero"):
        tensors = nf4_inputs.drawn_absmax_case(700, kind, SEED).inputs["float32"]
        assert not tensors["nested_absmax"].any()
