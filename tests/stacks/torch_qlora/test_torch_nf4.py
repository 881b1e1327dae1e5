"""NF4 through bitsandbytes against the rule in NumPy, bit for bit; each guard has inputs that need it."""

from __future__ import annotations

import bitsandbytes.backends.default.ops
import numpy as np
import pytest
import torch

from stacks.torch_qlora import nf4

CPU = torch.device("cpu")
NF4 = nf4.values(CPU).numpy()
DYNAMIC = nf4.dynamic_map(CPU).numpy()
SMALLEST = np.float32(1e-38)


def midpoints(table: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (table[:-1] + table[1:])


def quantize_by_the_rule(weight: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    flat = weight.reshape(-1)
    blocks = np.pad(flat, (0, -flat.size % block_size)).reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1)
    scaled = blocks * (np.float32(1) / np.maximum(absmax, SMALLEST))[:, None]
    return np.searchsorted(midpoints(NF4), scaled, side="left").astype(np.uint8).reshape(-1)[: flat.size], absmax


def pack(codes: np.ndarray) -> np.ndarray:
    even = np.pad(codes, (0, codes.size % 2))
    return (even[::2] << 4 | even[1::2]).astype(np.uint8)


def dequantize_by_the_rule(codes: np.ndarray, absmax: np.ndarray, block_size: int, shape: tuple[int, int]) -> np.ndarray:
    return (NF4[codes] * np.repeat(absmax, block_size)[: codes.size]).reshape(shape)


def quantize(weight: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    quantized = nf4.quantize(torch.from_numpy(weight), block_size)
    return nf4.unpack(quantized.packed, weight.size).numpy(), quantized.packed.numpy(), quantized.absmax.numpy()


def assert_follows_the_rule(weight: np.ndarray, block_size: int) -> None:
    codes, packed, absmax = quantize(weight, block_size)
    rule_codes, rule_absmax = quantize_by_the_rule(weight, block_size)
    np.testing.assert_array_equal(absmax, rule_absmax)
    np.testing.assert_array_equal(codes, rule_codes)
    np.testing.assert_array_equal(packed, pack(rule_codes))


def near_midpoints(size: int, block_size: int, seed: int) -> np.ndarray:
    """Values at a midpoint times absmax, or one ulp to either side; each block's first value is its absmax."""
    generator = np.random.default_rng(seed)
    absmax = generator.uniform(0.1, 3.0, size=-(-size // block_size)).astype(np.float32)
    of_block = np.repeat(absmax, block_size)[:size]
    values = generator.choice(midpoints(NF4), size) * of_block
    values = np.choose(generator.integers(0, 3, size), [values, np.nextafter(values, np.float32(9)), np.nextafter(values, np.float32(-9))])
    values[::block_size] = absmax
    return values.astype(np.float32)


@pytest.mark.parametrize("block_size", nf4.BLOCK_SIZES)
@pytest.mark.parametrize("blocks", [1, 3])
def test_codes_and_absmax_follow_the_rule_for_each_block_size(block_size: int, blocks: int) -> None:
    generator = np.random.default_rng(block_size + blocks)
    weight = generator.standard_normal((blocks, block_size + 3)).astype(np.float32)
    assert_follows_the_rule(weight, block_size)


@pytest.mark.parametrize("seed", range(20))
def test_tail_block_near_midpoints_is_scaled_by_the_reciprocal(seed: int) -> None:
    assert_follows_the_rule(near_midpoints(64 + 40, 64, seed).reshape(8, 13), 64)


@pytest.mark.parametrize("size", [64, 100, 32])
def test_zero_block_has_absmax_zero_and_code_seven(size: int) -> None:
    codes, _, absmax = quantize(np.zeros((2, size // 2), np.float32), 64)
    np.testing.assert_array_equal(absmax, np.zeros_like(absmax))
    np.testing.assert_array_equal(codes, np.full(size, 7))


@pytest.mark.parametrize("magnitude", [1e-37, 1.1e-38, 1e-38, 9e-39, 1e-39, 1e-44])
def test_blocks_around_the_smallest_absmax(magnitude: float) -> None:
    generator = np.random.default_rng(5)
    weight = (generator.uniform(-1, 1, (3, 50)) * magnitude).astype(np.float32)
    weight[1] = generator.standard_normal(50)
    assert_follows_the_rule(weight, 32)


def test_small_blocks_are_quantised_again_whatever_bitsandbytes_answered() -> None:
    """What CUDA answers for a zero block, code 0, is put right; a block that is large enough is kept as it came."""
    whole_blocks = torch.cat((torch.zeros(32), torch.ones(32), torch.full((32,), 5e-39)))
    absmax = whole_blocks.view(-1, 32).amax(dim=1)
    answered = torch.zeros(48, dtype=torch.uint8)
    repaired = nf4._requantize(answered, whole_blocks, absmax, 32)
    half = int(quantize_by_the_rule(np.full(32, 5e-39, np.float32), 32)[0][0])
    np.testing.assert_array_equal(nf4.unpack(repaired, 96).numpy(), np.repeat([7, 0, half], 32))
    assert half not in (0, 7)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (5, 13)])
def test_missing_last_nibble_is_zero(shape: tuple[int, int]) -> None:
    _, packed, _ = quantize(np.ones(shape, np.float32), 32)
    assert packed[-1] == 0xF0


@pytest.mark.parametrize("block_size", nf4.BLOCK_SIZES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 2), (2, 1), (8, 16), (60, 160), (64, 576), (5, 24), (7, 33), (3, 2048), (2, 4096), (9, 1024), (1, 4128)]
)
def test_dequantised_weight_is_exact(shape: tuple[int, int], block_size: int) -> None:
    generator = np.random.default_rng(shape[0] * shape[1])
    size = shape[0] * shape[1]
    codes = generator.integers(0, 16, size).astype(np.uint8)
    absmax = generator.uniform(0.1, 3.0, -(-size // block_size)).astype(np.float32)
    got = nf4.dequantize(_quantized(codes, absmax), block_size=block_size, out_features=shape[0], in_features=shape[1])
    np.testing.assert_array_equal(got.numpy(), dequantize_by_the_rule(codes, absmax, block_size, shape))


@pytest.mark.parametrize(
    ("shape", "block_size"), [((60, 160), 64), ((8, 16), 64), ((64, 576), 128), ((6, 128), 64), ((3, 4096), 4096), ((3, 7), 32)]
)
@pytest.mark.parametrize("biased", [False, True])
def test_linear_and_its_gradient_are_exact_on_exact_products(shape: tuple[int, int], block_size: int, biased: bool) -> None:
    """Weights 0 and +-2^k, small integers elsewhere: no sum rounds, in any order, so each bit is known."""
    generator = np.random.default_rng(7)
    size = shape[0] * shape[1]
    codes = generator.choice(np.array([0, 7, 15], np.uint8), size)
    absmax = np.exp2(generator.integers(-2, 3, -(-size // block_size))).astype(np.float32)
    weight = dequantize_by_the_rule(codes, absmax, block_size, shape).astype(np.float64)
    x, bar = (generator.integers(-8, 9, (5, width)).astype(np.float32) for width in (shape[1], shape[0]))
    bias = generator.integers(-8, 9, shape[0]).astype(np.float32) if biased else None
    leaf = torch.from_numpy(x).requires_grad_()
    y = nf4.linear(
        leaf,
        _quantized(codes, absmax),
        None if bias is None else torch.from_numpy(bias),
        block_size=block_size,
        out_features=shape[0],
        in_features=shape[1],
    )
    (gradient,) = torch.autograd.grad(y, leaf, torch.from_numpy(bar))
    np.testing.assert_array_equal(y.detach().numpy(), x @ weight.T + (0 if bias is None else bias))
    np.testing.assert_array_equal(gradient.numpy(), bar @ weight)
    assert np.any(gradient.numpy() != 0)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_nested_codes_near_each_midpoint_are_the_nearest(offset: float) -> None:
    middle = midpoints(DYNAMIC)
    around = np.concatenate((middle, np.nextafter(middle, np.float32(9)), np.nextafter(middle, np.float32(-9))))
    absmax = np.concatenate((np.ones(1, np.float32), around)) + np.float32(offset)
    _assert_nested_by_the_rule(absmax, np.float32(offset))


@pytest.mark.parametrize("blocks", [1, 255, 256, 257, 1000])
def test_nested_codes_follow_the_rule(blocks: int) -> None:
    absmax = np.abs(np.random.default_rng(blocks).standard_normal((blocks, 64))).max(axis=1).astype(np.float32)
    offset = nf4.offset(torch.from_numpy(absmax))
    np.testing.assert_allclose(offset.item(), absmax.astype(np.float64).mean(), rtol=blocks * 2.0**-24)
    _assert_nested_by_the_rule(absmax, offset.numpy())


def test_constant_absmax_nests_to_code_zero() -> None:
    absmax = np.full(300, 0.5, np.float32)
    codes, nested_absmax = nf4.nest(torch.from_numpy(absmax), torch.tensor(0.5))
    np.testing.assert_array_equal(codes.numpy(), np.zeros(300))
    np.testing.assert_array_equal(nested_absmax.numpy(), np.zeros(2))


def test_unnested_absmax_rounds_its_product_before_the_offset() -> None:
    generator = np.random.default_rng(11)
    codes = generator.integers(0, 256, 1000).astype(np.uint8)
    nested_absmax, offset = generator.uniform(0.1, 3.0, 4).astype(np.float32), np.float32(0.7)
    got = nf4.unnest(torch.from_numpy(codes), torch.from_numpy(nested_absmax), torch.tensor(offset))
    product = DYNAMIC[codes] * np.repeat(nested_absmax, 256)[:1000]
    np.testing.assert_array_equal(got.numpy(), product + offset)
    fused = (DYNAMIC[codes].astype(np.float64) * np.repeat(nested_absmax, 256)[:1000] + offset).astype(np.float32)
    assert np.any(fused != product + offset)


@pytest.mark.parametrize("block_size", nf4.BLOCK_SIZES)
@pytest.mark.parametrize("shape", [(2, 4096), (3, 7), (60, 160)])
def test_dequantising_never_waits_for_a_compiler(shape: tuple[int, int], block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_it(*arguments: object) -> None:
        raise AssertionError("bitsandbytes left its kernel for torch.compile")

    monkeypatch.setattr(bitsandbytes.backends.default.ops, "_dequantize_4bit_compute", compile_it)
    quantized = nf4.quantize(torch.ones(shape), block_size)
    weight = nf4.dequantize(quantized, block_size=block_size, out_features=shape[0], in_features=shape[1])
    np.testing.assert_array_equal(weight.numpy(), np.ones(shape))


def test_a_block_size_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="block_size is 48; allowed: 32, 64"):
        nf4.quantize(torch.zeros(4, 48), 48)


def test_bytes_that_are_not_the_weights_are_refused() -> None:
    quantized = nf4.Quantized(packed=torch.zeros(8, dtype=torch.uint8), absmax=torch.zeros(1))
    with pytest.raises(ValueError, match="got 8 packed bytes and 1 absmax; 128 elements in blocks of 64 are 64 bytes and 2 absmax"):
        nf4.dequantize(quantized, block_size=64, out_features=2, in_features=64)


def _quantized(codes: np.ndarray, absmax: np.ndarray) -> nf4.Quantized:
    return nf4.Quantized(packed=torch.from_numpy(pack(codes)), absmax=torch.from_numpy(absmax))


def _assert_nested_by_the_rule(absmax: np.ndarray, offset: np.ndarray | np.float32) -> None:
    codes, nested_absmax = nf4.nest(torch.from_numpy(absmax), torch.tensor(offset))
    centred = absmax - offset
    blocks = np.pad(centred, (0, -centred.size % 256)).reshape(-1, 256)
    rule_absmax = np.abs(blocks).max(axis=1)
    reciprocal = np.float32(1) / np.where(rule_absmax > 0, rule_absmax, np.float32(1))
    rule_codes = np.searchsorted(midpoints(DYNAMIC), blocks * reciprocal[:, None], side="left")
    rule_codes = np.where(rule_absmax[:, None] > 0, rule_codes, 0)
    np.testing.assert_array_equal(nested_absmax.numpy(), rule_absmax)
    np.testing.assert_array_equal(codes.numpy(), rule_codes.reshape(-1)[: centred.size])
