"""The reference of NF4 against bitsandbytes' own bytes, and against its definition by brute force."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from scipy.stats import norm

from parity.reference import nf4

GOLDEN = Path(__file__).parents[2] / "stacks" / "golden"
ON_CPU, ON_CUDA = GOLDEN / "nf4_bitsandbytes.safetensors", GOLDEN / "nf4_bitsandbytes_cuda.safetensors"
WITH_ONE = np.array([0, 15], dtype=np.uint8)
FLUSHED = {"within 2 ulp of a midpoint", "a zero block, and a zero tail", "absmax subnormal", "absmax under the smallest normal",
           "absmax over the smallest normal", "absmax the largest", "subnormal weights, a normal absmax"}  # fmt: skip
"""Kinds of cases in which CUDA departs from the rule (docs/adr/0004-nf4-rule.md)."""


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors; what the metadata says, JSON read."""
    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = {name: json.loads(text) if text[0] in "{[" else text for name, text in file.metadata().items()}
    return tensors, said


CPU, CPU_SAYS = load(ON_CPU)
CUDA, CUDA_SAYS = load(ON_CUDA)
CASES = sorted(CPU_SAYS["block_sizes"])
NESTED = sorted({name.partition(".")[0] for name in CPU if name.startswith("nested")})
each_device = pytest.mark.parametrize(("tensors", "said"), [(CPU, CPU_SAYS), (CUDA, CUDA_SAYS)], ids=["cpu", "cuda"])


def differing(one: np.ndarray, other: np.ndarray) -> int:
    """Elements whose bits differ."""
    assert one.shape == other.shape
    unsigned = np.dtype(f"u{one.dtype.itemsize}")
    return int(np.count_nonzero(one.view(unsigned) != other.view(unsigned)))


@each_device
@pytest.mark.parametrize("case", CASES)
def test_bytes_of_bitsandbytes(tensors: dict[str, np.ndarray], said: dict[str, Any], case: str) -> None:
    """All but as many as the file says that bitsandbytes departs by: none on a CPU."""
    weight, packed, absmax = (tensors[f"{case}.{part}"] for part in ("weight", "packed", "absmax"))
    got = nf4.quantize(weight, said["block_sizes"][case])
    departures = said["departures"].get(case, {"codes": 0, "absmax": 0})
    assert differing(got.codes, nf4.unpack(packed, weight.size)) == departures["codes"]
    assert differing(got.absmax, absmax) == departures["absmax"]
    if not departures["codes"]:
        np.testing.assert_array_equal(got.packed, packed)


@each_device
@pytest.mark.parametrize("case", NESTED)
def test_nested_bytes_of_bitsandbytes(tensors: dict[str, np.ndarray], said: dict[str, Any], case: str) -> None:
    absmax, offset, codes, nested = (tensors[f"{case}.{part}"] for part in ("absmax", "offset", "absmax_codes", "nested_absmax"))
    got_codes, got_nested = nf4.nest(absmax, offset)
    np.testing.assert_array_equal(got_codes, codes)
    np.testing.assert_array_equal(got_nested.view(np.uint32), nested.view(np.uint32))
    assert case not in said["departures"]


def test_both_devices_quantised_the_same_weights() -> None:
    assert set(CPU) == set(CUDA)
    for case in CASES:
        np.testing.assert_array_equal(CPU[f"{case}.weight"].view(np.uint32), CUDA[f"{case}.weight"].view(np.uint32))


def test_bitsandbytes_departs_on_cuda_alone_and_where_fast_math_explains_it() -> None:
    assert CPU_SAYS["departures"] == {}
    assert {CUDA_SAYS["kinds"][case] for case in CUDA_SAYS["departures"]} == FLUSHED
    near = {name: counts for name, counts in CUDA_SAYS["near_midpoints"].items() if name.startswith("codes, blocks of ")}
    assert len(near) == 8
    assert all(0.06 < differ / count < 0.09 for differ, count in near.values()), "a share of the inputs within 2 ulp of a midpoint"
    assert all(CPU_SAYS["near_midpoints"][name][0] == 0 for name in near)


def test_the_golden_files_hold_what_hides_bugs() -> None:
    sizes = {case: (CPU[f"{case}.weight"].size, block) for case, block in CPU_SAYS["block_sizes"].items()}
    kinds = set(CPU_SAYS["kinds"].values())
    for kind in ("whole blocks", "an odd count and a tail", "within 2 ulp of a midpoint"):
        blocks = {sizes[case][1] for case, of in CPU_SAYS["kinds"].items() if of == kind}
        assert blocks == {32, 64, 128, 256, 512, 1024, 2048, 4096}, kind
    assert all(sizes[case][0] % sizes[case][1] for case, kind in CPU_SAYS["kinds"].items() if kind == "an odd count and a tail")
    assert {"one element", "all negative"} | FLUSHED <= kinds
    assert {CPU[f"{case}.absmax"].size for case in NESTED} == {1, 255, 256, 257, 700}
    assert ON_CPU.stat().st_size + ON_CUDA.stat().st_size < 2**20
    assert all(said["versions"]["bitsandbytes"] == "0.50.2" for said in (CPU_SAYS, CUDA_SAYS))


def test_the_values_are_normal_quantiles() -> None:
    """QLoRA, appendix E: eight quantiles of the positive half, seven of the negative, zero, over the largest."""
    offset = 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    values = np.sort(np.concatenate([positive, [0.0], negative]))
    largest = values.max()
    # The table was made from probabilities in float32, two roundings each, which a quantile amplifies by 1 / density.
    errors = 2 * 2.0**-24 / norm.pdf(values)
    allowed = (errors + np.abs(values) / largest * errors.max()) / largest + 2.0**-24
    assert np.all(np.abs(nf4.VALUES - values / largest) <= allowed)


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


SMALLEST, NORMAL, LARGEST = (np.float32(getattr(np.finfo(np.float32), name)) for name in ("smallest_subnormal", "smallest_normal", "max"))


@pytest.mark.parametrize("absmax", [SMALLEST, np.float32(1e-42), np.float32(9.9e-39)])
def test_an_absmax_under_the_limit_is_stored_and_another_number_is_inverted(absmax: np.float32) -> None:
    """1e38 times a smaller absmax is under 1, so that its block may hold no code of +-1: the rule, though no good quantisation."""
    got = nf4.quantize(np.array([[absmax, -absmax, 0.0]], dtype=np.float32), 64)
    assert got.absmax == absmax
    np.testing.assert_array_equal(got.codes, nearest(np.array([absmax, -absmax, 0], dtype=np.float32) * np.float32(1e38)))


def test_subnormal_numbers_are_not_flushed() -> None:
    """Neither a weight, nor an absmax, nor the reciprocal of a large one, nor a product."""
    weight = np.array([[np.float32(1.1e-38), np.float32(0.6e-38), np.float32(-0.9e-38)]], dtype=np.float32)
    got = nf4.quantize(weight, 64)
    assert got.absmax == np.float32(1.1e-38) < NORMAL
    np.testing.assert_array_equal(got.codes, [15, 13, 1])
    back = nf4.dequantize(got.packed, got.absmax, 64, (1, 3))
    assert np.all(np.abs(back - weight) < 0.15 * np.abs(weight))
    assert np.all((back != 0) & (np.abs(back) < NORMAL))


def test_the_largest_number_is_its_own_absmax() -> None:
    got = nf4.quantize(np.array([[-LARGEST, LARGEST, LARGEST / 2, 0]], dtype=np.float32), 64)
    assert np.float32(1) / LARGEST < NORMAL
    np.testing.assert_array_equal(got.codes, [0, 15, nearest(np.array([0.5], dtype=np.float32))[0], 7])
    np.testing.assert_array_equal(nf4.dequantize(got.packed, got.absmax, 64, (1, 4))[0, [0, 1, 3]], [-LARGEST, LARGEST, 0])


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
