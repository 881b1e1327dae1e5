"""Drawn inputs with hard shapes and values.

Shapes come from a palette, since a new shape costs a compile in a stack that compiles; values come from a kind and a
seed. Simpler kinds and smaller shapes stand first, so that a failure shrinks towards them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

SEEDS = st.integers(0, 2**32 - 1)

Fill = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def _small_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(-3, 4, shape).astype(np.float64)


def _gaussian(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.abs(rng.standard_normal(shape)) + 0.5


def _all_equal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, rng.uniform(0.1, 3.0))


def _cancelling(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Neighbours along the last axis nearly cancel."""
    values = rng.standard_normal(shape)
    pairs = values.shape[-1] // 2
    values[..., 1 : 2 * pairs : 2] = -values[..., 0 : 2 * pairs : 2] * (1 + 1e-4 * rng.standard_normal((*shape[:-1], pairs)))
    return values


def _wide(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Magnitudes over 12 decades."""
    return rng.standard_normal(shape) * 10.0 ** rng.uniform(-6, 6, shape)


def _tiny(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Products of two of these are subnormal in float32."""
    return rng.standard_normal(shape) * 1e-20


VALUES: dict[str, Fill] = {
    "small integers": _small_integers,
    "gaussian": _gaussian,
    "positive": _positive,
    "all equal": _all_equal,
    "cancelling": _cancelling,
    "wide range": _wide,
    "subnormal products": _tiny,
}


def odd_integers(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> np.ndarray:
    """Odd integers of up to `bits` bits, either sign: each needs every one of those bits."""
    values: np.ndarray = (2 * rng.integers(0, 2 ** (bits - 1), shape) + 1) * signs(rng, shape)
    return values


def signs(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """+1 or -1."""
    return rng.choice(np.array([-1.0, 1.0]), shape)


def by_dtype(values: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The same draw in float64 with full mantissas, and rounded to float32."""
    return {dtype: {name: array.astype(dtype) for name, array in values.items()} for dtype in ("float64", "float32")}
