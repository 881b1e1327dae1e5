"""NF4 in NumPy, from the paper (QLoRA, arXiv:2305.14314, section 3 and appendix E) and bitsandbytes' storage layout.

NF4's arithmetic is float32 by definition: the format is what these exact roundings give, so a stack agrees bit for
bit or not at all. The scale is applied as a multiplication by f32(1 / absmax), as bitsandbytes' kernels do: a
division gives other codes next to a midpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contract.worker.operation import NESTED_BLOCK_SIZE

VALUES = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
"""The 16 values of NF4 (arXiv:2305.14314, appendix E)."""

MIDPOINTS = ((VALUES[1:] + VALUES[:-1]) / np.float32(2)).astype(np.float32)
"""Thresholds between neighbouring values, in float32; an input on one takes the lower code."""

SMALLEST_SCALE = np.float32(1e-38)
"""A block's absmax is raised to this before it is inverted, so that a zero block divides by something."""


def _dynamic_map(*, signed: bool) -> np.ndarray:
    """The 8-bit dynamic data type (Dettmers 2016, arXiv:1511.04561): sorted float32 [256]; without a sign its bit is the fraction's."""
    values = [np.float32(0), np.float32(1)]
    for exponent in range(7):
        boundaries = _linspace(0.1, 1.0, 2 ** (exponent + (not signed)) + 1)
        means = ((boundaries[:-1] + boundaries[1:]) / np.float32(2)).astype(np.float32)
        scaled = (np.float32(10.0 ** (exponent - 6)) * means).astype(np.float32)
        values += [*scaled, *-scaled] if signed else list(scaled)
    return np.sort(np.array(values, dtype=np.float32))


def _linspace(low: float, high: float, count: int) -> np.ndarray:
    """float32 steps from both ends towards the middle, as torch.linspace makes them."""
    start, stop = np.float32(low), np.float32(high)
    step = np.float32((stop - start) / np.float32(count - 1))
    index = np.arange(count)
    from_low = start.astype(np.float64) + step.astype(np.float64) * index
    from_high = stop.astype(np.float64) - step.astype(np.float64) * (count - 1 - index)
    return np.where(index < count // 2, from_low, from_high).astype(np.float32)


DYNAMIC_MAP, UNSIGNED_DYNAMIC_MAP = _dynamic_map(signed=True), _dynamic_map(signed=False)
DYNAMIC_MIDPOINTS = (np.float32(0.5) * (DYNAMIC_MAP[1:] + DYNAMIC_MAP[:-1])).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """codes [E] uint8 in 0..15, packed [ceil(E / 2)] uint8, absmax [blocks] float32."""

    codes: np.ndarray
    packed: np.ndarray
    absmax: np.ndarray


def quantize(weight: np.ndarray, block_size: int) -> Quantized:
    """NF4 codes of a float32 weight, block by block over the flattened weight (the last block may be short)."""
    blocks = _blocks(weight.reshape(-1), block_size)
    absmax = np.abs(blocks).max(axis=1)
    reciprocal = np.float32(1) / np.maximum(absmax, SMALLEST_SCALE)
    scaled = np.clip(blocks * reciprocal[:, None], np.float32(-1), np.float32(1))
    codes = _count_below(scaled, MIDPOINTS).reshape(-1)[: weight.size]
    return Quantized(codes=codes, packed=pack(codes), absmax=absmax)


def pack(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte: the earlier element in the high nibble; an odd last one is followed by a zero nibble."""
    pairs = np.pad(codes, (0, codes.size % 2)).reshape(-1, 2)
    packed: np.ndarray = ((pairs[:, 0] << 4) | pairs[:, 1]).astype(np.uint8)
    return packed


def unpack(packed: np.ndarray, count: int) -> np.ndarray:
    """The first `count` codes of packed bytes."""
    return np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]


def dequantize(packed: np.ndarray, absmax: np.ndarray, block_size: int, shape: tuple[int, int]) -> np.ndarray:
    """weight = f32(value of the code * absmax of its block)."""
    values = VALUES[unpack(packed, shape[0] * shape[1])]
    blocks: np.ndarray = _blocks(values, block_size) * absmax[:, None]
    return blocks.reshape(-1)[: values.size].reshape(shape)


def offset(weight: np.ndarray, block_size: int) -> np.ndarray:
    """The mean of a float32 weight's absmax, summed in float64 and rounded once: float32, of shape []."""
    absmax = np.abs(_blocks(weight.reshape(-1), block_size)).max(axis=1)
    return np.asarray(absmax.mean(dtype=np.float64), dtype=np.float32)


def nest(absmax: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit codes of absmax - offset [blocks] and their own absmax, one per 256 blocks (double quantisation)."""
    blocks = _blocks((absmax - offset).astype(np.float32), NESTED_BLOCK_SIZE)
    nested = np.abs(blocks).max(axis=1)
    reciprocal = np.float32(1) / np.where(nested > 0, nested, np.float32(1))
    codes = np.searchsorted(DYNAMIC_MIDPOINTS, blocks * reciprocal[:, None], side="left").astype(np.uint8)
    codes[nested == 0] = 0
    return codes.reshape(-1)[: absmax.size], nested


def unnest(absmax_codes: np.ndarray, nested_absmax: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """absmax = f32(f32(map[code] * nested_absmax) + offset): two roundings, not a fused multiply-add."""
    blocks: np.ndarray = _blocks(DYNAMIC_MAP[absmax_codes], NESTED_BLOCK_SIZE) * nested_absmax[:, None]
    absmax: np.ndarray = blocks.reshape(-1)[: absmax_codes.size] + offset
    return absmax.astype(np.float32)


def _blocks(flat: np.ndarray, block_size: int) -> np.ndarray:
    return np.pad(flat, (0, -flat.size % block_size)).reshape(-1, block_size)


def _count_below(x: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """How many thresholds lie strictly below each element: the code, the lower one on a threshold."""
    count = np.zeros(x.shape, dtype=np.uint8)
    for threshold in thresholds:
        count += x > threshold
    return count
