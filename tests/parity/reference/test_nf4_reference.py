"""The reference of NF4 against bitsandbytes' own bytes, and against its definition by brute force."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.stats import norm

from parity.reference import nf4

GOLDEN = Path(__file__).parents[2] / "stacks" / "golden" / "nf4_bitsandbytes.safetensors"
WITH_ONE = np.array([0, 15], dtype=np.uint8)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with safe_open(GOLDEN, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def cases(prefix: str) -> list[str]:
    with safe_open(GOLDEN, framework="numpy") as file:
        return sorted({name.partition(".")[0] for name in file.keys() if name.startswith(prefix)})  # noqa: SIM118


def block_size(case: str) -> int:
    with safe_open(GOLDEN, framework="numpy") as file:
        return int(json.loads(file.metadata()["block_sizes"])[case])


@pytest.mark.parametrize("case", cases("case"))
def test_bytes_of_bitsandbytes(golden: dict[str, np.ndarray], case: str) -> None:
    weight, packed, absmax = (golden[f"{case}.{part}"] for part in ("weight", "packed", "absmax"))
    got = nf4.quantize(weight, block_size(case))
    np.testing.assert_array_equal(got.packed, packed)
    np.testing.assert_array_equal(got.absmax.view(np.uint32), absmax.view(np.uint32))
    np.testing.assert_array_equal(nf4.unpack(packed, weight.size), got.codes)


@pytest.mark.parametrize("case", cases("nested"))
def test_nested_bytes_of_bitsandbytes(golden: dict[str, np.ndarray], case: str) -> None:
    absmax, offset, codes, nested = (golden[f"{case}.{part}"] for part in ("absmax", "offset", "absmax_codes", "nested_absmax"))
    got_codes, got_nested = nf4.nest(absmax, offset)
    np.testing.assert_array_equal(got_codes, codes)
    np.testing.assert_array_equal(got_nested.view(np.uint32), nested.view(np.uint32))


def test_the_golden_file_has_more_than_one_nested_block(golden: dict[str, np.ndarray]) -> None:
    assert max(golden[f"{case}.nested_absmax"].size for case in cases("nested")) > 1


def test_the_values_are_normal_quantiles() -> None:
    """QLoRA, appendix E: eight quantiles of the positive half, seven of the negative, zero, over the largest."""
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([positive, [0.0], negative]))
    np.testing.assert_allclose(nf4.VALUES, values / values.max(), atol=2e-6)


def nearest(scaled: np.ndarray) -> np.ndarray:
    """The code of the nearest value, by brute force; the lower one where two are as near in float32's midpoint."""
    return np.array([sum(bool(x > m) for m in nf4.MIDPOINTS) for x in scaled.reshape(-1)], dtype=np.uint8)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), columns=st.integers(1, 40), block=st.sampled_from((32, 64)))
def test_each_code_is_the_nearest_value(seed: int, rows: int, columns: int, block: int) -> None:
    weight = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    got = nf4.quantize(weight, block)
    assert got.absmax.size == -(-weight.size // block)
    for index, start in enumerate(range(0, weight.size, block)):
        values = weight.reshape(-1)[start : start + block]
        assert got.absmax[index] == np.abs(values).max()
        scaled = values * (np.float32(1) / got.absmax[index])
        np.testing.assert_array_equal(got.codes[start : start + block], nearest(scaled))
        distance = np.abs(scaled[:, None].astype(np.float64) - nf4.VALUES)
        chosen = distance[np.arange(values.size), got.codes[start : start + block]]
        np.testing.assert_array_less(chosen, distance.min(axis=1) + 1e-7)


@pytest.mark.parametrize("index", range(15))
def test_a_midpoint_takes_the_lower_code_and_the_next_float_the_upper(index: int) -> None:
    midpoint = nf4.MIDPOINTS[index]
    weight = np.array([[1.0, midpoint, np.nextafter(midpoint, np.float32(2)), np.nextafter(midpoint, np.float32(-2))]], dtype=np.float32)
    np.testing.assert_array_equal(nf4.quantize(weight, 64).codes, [15, index, index + 1, index])


def test_the_scale_is_a_multiplication_by_the_reciprocal() -> None:
    """Within 2 ulp of a midpoint a division gives another code in some of a hundred; bitsandbytes multiplies."""
    rng = np.random.default_rng(0)
    absmax = rng.uniform(0.01, 3, (200, 1)).astype(np.float32)
    values = (rng.choice(nf4.MIDPOINTS, (200, 64)) * absmax).astype(np.float32)
    values = (values.view(np.int32) + rng.integers(-2, 3, values.shape)).astype(np.int32).view(np.float32)
    values[:, 0] = absmax[:, 0]
    codes = nf4.quantize(values, 64).codes.reshape(values.shape)
    np.testing.assert_array_equal(codes.reshape(-1), nearest(values * (np.float32(1) / absmax)))
    assert 0.01 < np.mean(codes.reshape(-1) != nearest(values / absmax)) < 0.2


def test_the_tables_are_those_of_bitsandbytes() -> None:
    """Every bit of both."""
    functional = importlib.import_module("bitsandbytes.functional")
    np.testing.assert_array_equal(nf4.VALUES, functional.get_4bit_type("nf4", device="cpu").numpy())
    np.testing.assert_array_equal(nf4.DYNAMIC_MAP, functional.create_dynamic_map().numpy())


def test_a_zero_block_is_all_zero() -> None:
    got = nf4.quantize(np.zeros((2, 64), dtype=np.float32), 64)
    assert set(got.codes) == {7}
    np.testing.assert_array_equal(nf4.dequantize(got.packed, got.absmax, 64, (2, 64)), 0)


def test_the_earlier_element_is_in_the_high_nibble() -> None:
    np.testing.assert_array_equal(nf4.pack(np.array([1, 2, 15], dtype=np.uint8)), [0x12, 0xF0])


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 99))
def test_unpack_undoes_pack(seed: int, count: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 16, count).astype(np.uint8)
    np.testing.assert_array_equal(nf4.unpack(nf4.pack(codes), count), codes)


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 9), columns=st.integers(1, 40), block=st.sampled_from((32, 64)))
def test_each_weight_is_its_value_times_its_absmax(seed: int, rows: int, columns: int, block: int) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, rows * columns).astype(np.uint8)
    absmax = rng.uniform(0, 3, -(-codes.size // block)).astype(np.float32)
    got = nf4.dequantize(nf4.pack(codes), absmax, block, (rows, columns))
    assert got.dtype == np.float32
    for index, value in enumerate(got.reshape(-1)):
        assert value == np.float32(float(nf4.VALUES[codes[index]]) * float(absmax[index // block]))


@given(seed=st.integers(0, 2**32 - 1))
def test_quantising_again_changes_nothing(seed: int) -> None:
    """Where each block holds a code of +-1 (single quantisation)."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (5, 64)).astype(np.uint8)
    codes[:, 3] = rng.choice(WITH_ONE, 5)
    absmax = rng.uniform(1e-3, 3, 5).astype(np.float32)
    again = nf4.quantize(nf4.dequantize(nf4.pack(codes.reshape(-1)), absmax, 64, (5, 64)), 64)
    np.testing.assert_array_equal(again.codes.reshape(5, 64), codes)
    np.testing.assert_array_equal(again.absmax, absmax)


def test_the_dynamic_map() -> None:
    """256 sorted values over seven decades, signed, with 0 and 1 (Dettmers 2016; 1 has no negative)."""
    table = nf4.DYNAMIC_MAP
    assert table.shape == (256,)
    assert table.dtype == np.float32
    assert np.all(np.diff(table) > 0)
    assert table[-1] == 1
    assert 0 in table
    negative = -table[table < 0][::-1]
    np.testing.assert_array_equal(negative, table[(table > 0) & (table < 1)])
    assert float(negative[0]) == pytest.approx(0.55e-6, rel=1e-6)


@pytest.mark.parametrize("index", [0, 1, 100, 127, 128, 254])
def test_a_midpoint_of_the_dynamic_map_takes_the_lower_code(index: int) -> None:
    midpoint = nf4.DYNAMIC_MIDPOINTS[index]
    absmax = np.array([1.0, midpoint, np.nextafter(midpoint, np.float32(2))], dtype=np.float32)
    codes, nested = nf4.nest(absmax, np.float32(0))
    np.testing.assert_array_equal(nested, [1])
    np.testing.assert_array_equal(codes, [255, index, index + 1])


def test_a_constant_absmax_has_nothing_left_to_nest() -> None:
    absmax = np.full(300, np.float32(0.3))
    codes, nested = nf4.nest(absmax, np.float32(0.3))
    np.testing.assert_array_equal(nested, [0, 0])
    np.testing.assert_array_equal(codes, 0)
    np.testing.assert_array_equal(nf4.unnest(codes, nested, np.float32(0.3)), absmax)


@given(seed=st.integers(0, 2**32 - 1), count=st.sampled_from((1, 256, 257, 600)))
def test_nesting_errs_by_at_most_half_a_step(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    absmax = np.abs(rng.standard_normal(count)).astype(np.float32)
    offset = np.float32(absmax.mean())
    codes, nested = nf4.nest(absmax, offset)
    assert nested.size == -(-count // 256)
    back = nf4.unnest(codes, nested, offset)
    steps = np.diff(nf4.DYNAMIC_MAP).max() * np.repeat(nested, 256)[:count]
    np.testing.assert_array_less(np.abs(back - absmax), steps / 2 * (1 + 1e-5) + 1e-6)


def test_unnesting_rounds_the_product_before_it_adds() -> None:
    """A fused multiply-add gives another last bit somewhere; the reference must not."""
    rng = np.random.default_rng(0)
    codes = np.arange(256, dtype=np.uint8)
    nested, offset = rng.uniform(0.1, 2, 1).astype(np.float32), np.float32(0.7)
    product = nf4.DYNAMIC_MAP.astype(np.float64) * float(nested[0])
    twice = product.astype(np.float32) + offset
    fused = (product + float(offset)).astype(np.float32)
    np.testing.assert_array_equal(nf4.unnest(codes, nested, offset), twice)
    assert np.any(twice != fused)
