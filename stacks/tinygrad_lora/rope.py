"""Rotary position embedding, rotate-half (arXiv:2104.09864).

Its tables are made on the host in float64 and cast once: tinygrad's sin is 1.9e-6 off at an angle of 8,192.

Shape suffixes: B sequences, T tokens, H heads, E head_dim, F frequencies (= E / 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from tinygrad import Tensor

from contract.model.layouts.rope import RopeScaling
from stacks.tinygrad_lora.host import rounded
from stacks.tinygrad_lora.widen import wide

FUNCTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"sin": np.sin, "cos": np.cos}
"""The elementary functions that the tables rest on, in float64."""


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """theta^(-2 i / head_dim), i = 0 .. head_dim / 2 - 1, float64 [F], changed as `contract.model.layouts.rope.RopeScaling` says."""
    plain_F: np.ndarray = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return plain_F
    if scaling.rope_type == "linear":
        return plain_F / scaling.factor
    return _llama3(plain_F, scaling)


def tables(positions: np.ndarray, frequencies_F: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of position times frequency, twice over, [..., E], in `dtype`, of whole positions [...].

    Raises:
        ValueError: a negative position.
    """
    if (positions < 0).any():
        raise ValueError(f"a position is {int(positions.min())}; allowed: 0 and above")
    angles_TE = np.tile(positions.astype(np.float64)[..., None] * frequencies_F, 2)
    return rounded(FUNCTIONS["cos"](angles_TE), dtype), rounded(FUNCTIONS["sin"](angles_TE), dtype)


def rotate(x_BHTE: Tensor, cos_TE: Tensor, sin_TE: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin; rotate_half(a, b) = (-b, a), halves of a head.

    Args:
        x_BHTE: float32, float64 or bfloat16, which is float32 inside and rounded once.
        cos_TE, sin_TE: the same dtype; of shape [T, E], or [B, 1, T, E] where each sequence has positions of its own.
    """
    half = int(x_BHTE.shape[-1]) // 2
    wide_BHTE = wide(x_BHTE)
    rotated_BHTE = (-wide_BHTE[..., half:]).cat(wide_BHTE[..., :half], dim=-1)
    return (wide_BHTE * wide(cos_TE) + rotated_BHTE * wide(sin_TE)).cast(x_BHTE.dtype)


def _llama3(plain_F: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Short wavelengths stay, long ones are divided by the factor, those between are blended (arXiv:2407.21783)."""
    low, high, length = scaling.low_freq_factor, scaling.high_freq_factor, scaling.original_max_position_embeddings
    assert low is not None, "RopeScaling holds all three for llama3"
    assert high is not None
    assert length is not None
    turns_F = length / (2 * math.pi / plain_F)
    share_F = (turns_F - low) / (high - low)
    divided_F = plain_F / scaling.factor
    # (1 - s) f / factor + s f, so arranged that a factor of 1 changes no bit
    blended_F = divided_F + share_F * (plain_F - divided_F)
    scaled_F: np.ndarray = np.where(turns_F > high, plain_F, np.where(turns_F < low, divided_F, blended_F))
    return scaled_F
