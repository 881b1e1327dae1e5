"""What make_nf4_golden.py quantises, and the rule that it holds bitsandbytes to (docs/adr/0004-nf4-rule.md); NumPy alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

SEED = 20_260
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
NESTED_BLOCK = 256
NESTED_COUNTS = (1, 255, 256, 257, 700)
LARGEST = float(np.finfo(np.float32).max)
SMALLEST_SCALE = np.float32(1e-38)

VALUES = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
        -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ],
    dtype=np.float32,
)  # fmt: skip
"""NF4's (QLoRA, arXiv:2305.14314, appendix E)."""


def dynamic_map() -> np.ndarray:
    """bitsandbytes' own signed dynamic 8-bit map, float32 [256]."""
    from bitsandbytes.functional import create_dynamic_map

    table: np.ndarray = create_dynamic_map().numpy()
    return table


def midpoints(table: np.ndarray) -> np.ndarray:
    """float32 thresholds between neighbours of a sorted table."""
    return np.asarray(np.float32(0.5) * (table[:-1] + table[1:]), dtype=np.float32)


def by_the_rule(values: np.ndarray, table: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes [E] uint8 and absmax [B] float32 of float32 values."""
    flat = values.reshape(-1)
    blocks = np.pad(flat, (0, -flat.size % block_size)).reshape(-1, block_size)
    absmax = np.abs(blocks).max(axis=1)
    reciprocal = np.float32(1) / np.maximum(absmax, SMALLEST_SCALE)
    codes = np.searchsorted(midpoints(table), blocks * reciprocal[:, None], side="left").astype(np.uint8)
    return codes.reshape(-1)[: flat.size], absmax


def nested_by_the_rule(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit codes and nested absmax of absmax - offset; code 0 where the nested absmax is 0."""
    codes, absmax = by_the_rule(values, dynamic_map(), NESTED_BLOCK)
    codes[np.repeat(absmax == 0, NESTED_BLOCK)[: codes.size]] = 0
    return codes, absmax


def weights() -> Iterator[tuple[str, np.ndarray, int]]:
    """(kind, float32 weight [O, I], block size) of each case."""
    for block_size in BLOCK_SIZES:
        rng = np.random.default_rng([SEED, block_size])
        yield "whole blocks", gaussian(rng, (2, block_size)), block_size
        yield "an odd count and a tail", gaussian(rng, (3, block_size // 2 + 1)), block_size
        yield "within 2 ulp of a midpoint", near(rng, 2, block_size, midpoints(VALUES)), block_size
    rng = np.random.default_rng(SEED)
    yield "rows of a multiple of 16 and no whole block", gaussian(rng, (5, 80)), 64
    yield "one element", gaussian(rng, (1, 1)), 64
    with_zeros = gaussian(rng, (5, 50))
    with_zeros.reshape(-1)[64:128] = with_zeros.reshape(-1)[192:] = 0.0
    with_zeros.reshape(-1)[70:80] = -0.0
    yield "a zero block, and a zero tail", with_zeros, 64
    yield "all negative", -np.abs(gaussian(rng, (2, 64))), 64
    for kind, scales in hard_absmax(rng).items():
        yield f"absmax {kind}", (rng.uniform(-1, 1, (scales.size, 64)).astype(np.float32) * scales[:, None]), 64
    subnormal = gaussian(rng, (4, 64)) * np.float32(1e-37)
    subnormal[:, 0] = np.array([1.2e-38, -1.3e-38, 1e-37, 1.0], dtype=np.float32)
    yield "subnormal weights, a normal absmax", subnormal, 64


def hard_absmax(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """float32 [16] each."""
    tiny = float(np.finfo(np.float32).smallest_normal)
    ranges = {"subnormal": (1e-45, 1e-38), "under the smallest normal": (1e-38, tiny), "over the smallest normal": (tiny, 4 * tiny)}
    made = {kind: rng.uniform(low, high, 16).astype(np.float32) for kind, (low, high) in ranges.items()}
    made["subnormal"][:4] = np.array([1e-45, 1e-44, 1e-42, 1e-40], dtype=np.float32)
    return made | {"the largest": np.float32(LARGEST) * (1 - rng.integers(0, 3, 16).astype(np.float32) * np.float32(2.0**-24))}


def nested_weight(rng: np.random.Generator, count: int) -> np.ndarray:
    """float32 [count, 64]: a weight of that many blocks, whose absmax spread over three decades."""
    rows = np.logspace(-3, 0, count)[:, None]
    return np.asarray(rng.standard_normal((count, 64)) * rows, dtype=np.float32)


def gaussian(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """float32, of a weight's usual size."""
    return np.asarray(rng.standard_normal(shape) * 0.02, dtype=np.float32)


def near(rng: np.random.Generator, blocks: int, block_size: int, thresholds: np.ndarray) -> np.ndarray:
    """float32 [blocks, block_size]: each threshold times absmax, moved by up to 2 ulp; the first of each block is absmax."""
    absmax = rng.uniform(0.01, 3.0, (blocks, 1)).astype(np.float32)
    values = (rng.choice(thresholds, (blocks, block_size)) * absmax).astype(np.float32)
    moved: np.ndarray = (values.view(np.int32) + rng.integers(-2, 3, values.shape)).astype(np.int32).view(np.float32)
    moved[:, 0] = absmax[:, 0]
    return moved
