"""The NF4 of the tinygrad stack, bit for bit: against NumPy, bitsandbytes' own bytes, and laws."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from contract.worker.process import RequestFailed, StackProcess

GOLDEN = Path(__file__).parents[1] / "golden" / "nf4_bitsandbytes.safetensors"
VALUES = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495,
     0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
     0.7229568362236023, 1.0],
    dtype=np.float32,
)  # fmt: skip
MIDPOINTS = (VALUES[1:] + VALUES[:-1]) / np.float32(2)
DYNAMIC_MAP_SHA256 = "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c"
"""Of the float32 bytes of bitsandbytes.functional.create_dynamic_map(), bitsandbytes 0.50.2 with torch 2.13.0."""
SHAPES = ((3, 50), (37, 51), (130, 128), (7, 16))
"""A tail block; an odd count and more than one block; more than 256 blocks of 64 or less; a row that is no whole block."""


def compute(stack: StackProcess, op: str, attrs: dict[str, Any], **tensors: np.ndarray) -> dict[str, np.ndarray]:
    return stack.compute(op, attrs, tensors).tensors


def reference_codes(weight: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    blocks = np.pad(weight.reshape(-1), (0, -weight.size % block_size)).reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1)
    reciprocal = np.float32(1) / np.maximum(absmax, np.float32(1e-38))
    return np.searchsorted(MIDPOINTS, blocks * reciprocal[:, None], side="left").reshape(-1)[: weight.size].astype(np.uint8), absmax


def reference_weight(codes: np.ndarray, absmax: np.ndarray, block_size: int) -> np.ndarray:
    return VALUES[codes] * np.repeat(absmax, block_size)[: codes.size]


def near_midpoints(generator: np.random.Generator, shape: tuple[int, int], block_size: int) -> np.ndarray:
    """Weights whose scaled values lie within two steps of a midpoint, each block with an absmax of its own."""
    size = shape[0] * shape[1]
    absmax = np.repeat(generator.uniform(0.001, 3, -(-size // block_size)).astype(np.float32), block_size)[:size]
    weight = generator.choice(MIDPOINTS, size) * absmax
    for _ in range(2):
        weight = np.where(generator.random(size) < 0.5, weight, np.nextafter(weight, generator.choice(np.float32([-9, 9]), size)))
    weight[::block_size] = absmax[::block_size]
    return weight.astype(np.float32).reshape(shape)


@given(st.sampled_from(SHAPES), st.sampled_from((32, 64, 256)), st.integers(0, 2**32 - 1), st.sampled_from(("normal", "near", "tiny")))
def test_quantize_is_bit_exact(stack: StackProcess, shape: tuple[int, int], block_size: int, seed: int, kind: str) -> None:
    generator = np.random.default_rng(seed)
    weight = near_midpoints(generator, shape, block_size) if kind == "near" else generator.standard_normal(shape).astype(np.float32)
    if kind == "tiny":
        weight *= np.float32(1e-38)
    weight.reshape(-1)[:block_size] *= generator.integers(2)  # a zero block, every other time
    answer = compute(stack, "nf4_quantize", {"block_size": block_size}, weight=weight)
    codes, absmax = reference_codes(weight, block_size)
    np.testing.assert_array_equal(answer["absmax"].view(np.uint32), absmax.view(np.uint32))
    np.testing.assert_array_equal(answer["codes"], codes)
    pairs = np.pad(codes, (0, codes.size % 2)).reshape(-1, 2)
    np.testing.assert_array_equal(answer["packed"], pairs[:, 0] << 4 | pairs[:, 1])


def test_near_midpoints_tell_a_reciprocal_from_a_division() -> None:
    weight = near_midpoints(np.random.default_rng(0), (130, 128), 64)
    codes, absmax = reference_codes(weight, 64)
    divided = np.searchsorted(MIDPOINTS, weight.reshape(-1, 64) / absmax[:, None], side="left").reshape(-1)
    assert 0.01 < (divided != codes).mean() < 0.2


def test_a_zero_block_has_absmax_zero_and_codes_seven(stack: StackProcess) -> None:
    answer = compute(stack, "nf4_quantize", {"block_size": 64}, weight=np.zeros((3, 50), np.float32))
    assert not answer["absmax"].any()
    assert (answer["codes"] == 7).all()


@given(st.sampled_from(SHAPES), st.sampled_from((32, 64, 256)), st.integers(0, 2**32 - 1))
def test_dequantize_is_bit_exact(stack: StackProcess, shape: tuple[int, int], block_size: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = shape[0] * shape[1]
    packed = generator.integers(0, 256, (size + 1) // 2, dtype=np.uint8)
    absmax = generator.lognormal(-3, 2, -(-size // block_size)).astype(np.float32)
    codes = np.stack((packed >> 4, packed & 15), axis=1).reshape(-1)[:size]
    expected = reference_weight(codes, absmax, block_size).reshape(shape)
    attrs = {"block_size": block_size, "out_features": shape[0], "in_features": shape[1]}
    np.testing.assert_array_equal(compute(stack, "nf4_dequantize", attrs, packed=packed, absmax=absmax)["weight"], expected)
    # an identity makes the product read the weight out: any contraction that skips its rounding would show
    eye, bar = np.eye(shape[1], dtype=np.float32), generator.standard_normal((shape[1], shape[0])).astype(np.float32)
    answer = compute(stack, "nf4_linear", attrs, x=eye, packed=packed, absmax=absmax, y_bar=bar)
    np.testing.assert_array_equal(answer["y"], expected.T)
    exact, magnitude = bar.astype(np.float64) @ expected, np.abs(bar).astype(np.float64) @ np.abs(expected)
    unit = shape[0] * 2.0**-24
    assert (np.abs(answer["x_grad"] - exact) <= unit / (1 - unit) * magnitude).all()  # Higham 2002, section 3.1


def test_the_linear_adds_a_bias(stack: StackProcess) -> None:
    generator = np.random.default_rng(3)
    packed, absmax = generator.integers(0, 256, 75, dtype=np.uint8), np.float32([0.5, 2, 3])
    attrs = {"block_size": 64, "out_features": 3, "in_features": 50}
    bias = np.float32([1, -2, 3])
    answer = compute(stack, "nf4_linear", attrs, x=np.zeros((4, 50), np.float32), packed=packed, absmax=absmax, bias=bias)
    np.testing.assert_array_equal(answer["y"], np.tile(bias, (4, 1)))


def test_quantising_again_changes_nothing(stack: StackProcess) -> None:
    weight = np.random.default_rng(1).standard_normal((37, 51)).astype(np.float32)
    first = compute(stack, "nf4_quantize", {"block_size": 64}, weight=weight)
    attrs = {"block_size": 64, "out_features": 37, "in_features": 51}
    again = compute(stack, "nf4_dequantize", attrs, packed=first["packed"], absmax=first["absmax"])["weight"]
    second = compute(stack, "nf4_quantize", {"block_size": 64}, weight=again)
    for name in ("codes", "packed", "absmax"):
        np.testing.assert_array_equal(second[name], first[name])


def test_the_dynamic_map_is_that_of_bitsandbytes(stack: StackProcess) -> None:
    dynamic_map = read_dynamic_map(stack)
    assert hashlib.sha256(dynamic_map.tobytes()).hexdigest() == DYNAMIC_MAP_SHA256


def read_dynamic_map(stack: StackProcess) -> np.ndarray:
    """The map, read out through the operation: code i with nested_absmax 1 and offset 0."""
    tensors = {"absmax_codes": np.arange(256, dtype=np.uint8), "nested_absmax": np.ones(1, np.float32), "offset": np.zeros((), np.float32)}
    return compute(stack, "nf4_unnest", {}, **tensors)["absmax"]


@given(st.sampled_from((1, 255, 700)), st.integers(0, 2**32 - 1), st.booleans())
def test_nested_statistics_are_bit_exact(stack: StackProcess, blocks: int, seed: int, near: bool) -> None:
    generator = np.random.default_rng(seed)
    dynamic_map = read_dynamic_map(stack)
    midpoints = np.float32(0.5) * (dynamic_map[1:] + dynamic_map[:-1])
    offset = np.float32(generator.normal())
    if near:
        offset = np.float32(0)
        absmax = generator.choice(midpoints, blocks) * np.float32(0.37)
        absmax = np.where(generator.random(blocks) < 0.5, absmax, np.nextafter(absmax, np.float32(9)))
    else:
        absmax = generator.lognormal(-3, 1, blocks).astype(np.float32)
    absmax[::256] = np.float32(0.37) if near else absmax[::256]
    centred = np.pad(absmax - offset, (0, -blocks % 256)).reshape(-1, 256)
    nested = np.abs(centred).max(axis=1)
    codes = np.searchsorted(midpoints, centred * (np.float32(1) / nested)[:, None], side="left").reshape(-1)[:blocks]
    answer = compute(stack, "nf4_nest", {}, absmax=absmax, offset=np.array(offset))
    np.testing.assert_array_equal(answer["nested_absmax"], nested)
    np.testing.assert_array_equal(answer["absmax_codes"], codes)
    back = compute(stack, "nf4_unnest", {}, **answer, offset=np.array(offset))["absmax"]
    np.testing.assert_array_equal(back, dynamic_map[codes] * np.repeat(nested, 256)[:blocks] + offset)


def test_where_all_absmax_are_equal_the_nested_codes_are_zero(stack: StackProcess) -> None:
    answer = compute(stack, "nf4_nest", {}, absmax=np.full(255, 0.25, np.float32), offset=np.array(0.25, np.float32))
    assert not answer["nested_absmax"].any()
    assert not answer["absmax_codes"].any()
    back = compute(stack, "nf4_unnest", {}, **answer, offset=np.array(0.25, np.float32))["absmax"]
    assert (back == np.float32(0.25)).all()


@given(st.sampled_from((1, 3, 255, 700)), st.integers(0, 2**32 - 1))
def test_the_offset_is_the_mean_within_the_bound_of_its_sum(stack: StackProcess, blocks: int, seed: int) -> None:
    absmax = np.random.default_rng(seed).lognormal(-3, 1, blocks).astype(np.float32)
    exact = absmax.astype(np.float64).mean()
    offset = compute(stack, "nf4_offset", {}, absmax=absmax)["offset"]
    assert abs(float(offset) - exact) <= blocks * 2.0**-24 / (1 - blocks * 2.0**-24) * exact


def test_bitsandbytes_made_the_same_bytes(stack: StackProcess) -> None:
    with safe_open(GOLDEN, framework="numpy") as golden:
        block_sizes = json.loads(golden.metadata()["block_sizes"])
        assert block_sizes
        for case, block_size in block_sizes.items():
            answer = compute(stack, "nf4_quantize", {"block_size": block_size}, weight=golden.get_tensor(f"{case}.weight"))
            for name in ("packed", "absmax"):
                np.testing.assert_array_equal(answer[name], golden.get_tensor(f"{case}.{name}"), err_msg=f"{case}.{name}")


def test_bitsandbytes_nested_the_same_statistics(stack: StackProcess) -> None:
    with safe_open(GOLDEN, framework="numpy") as golden:
        cases = sorted({name.partition(".")[0] for name in golden.offset_keys() if name.startswith("nested")})
        assert cases
        for case in cases:
            absmax, offset = golden.get_tensor(f"{case}.absmax"), golden.get_tensor(f"{case}.offset").reshape(())
            answer = compute(stack, "nf4_nest", {}, absmax=absmax, offset=offset)
            for name in ("absmax_codes", "nested_absmax"):
                np.testing.assert_array_equal(answer[name], golden.get_tensor(f"{case}.{name}"), err_msg=f"{case}.{name}")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_is_refused(stack: StackProcess, wrong: float) -> None:
    weight = np.zeros((3, 50), np.float32)
    weight[1, 2] = wrong
    with pytest.raises(RequestFailed, match="NaN or infinity") as caught:
        compute(stack, "nf4_quantize", {"block_size": 64}, weight=weight)
    assert caught.value.error_class == "ValueError"
