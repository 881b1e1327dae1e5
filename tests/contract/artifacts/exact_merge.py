"""The merge's definition, one element after the other; and a merge into a temporary folder."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from contract.artifacts.adapter import Adapter
from contract.artifacts.merge import merge
from tests.contract.artifacts.adapter_cases import Tensors, write_base


def float32(exact: Fraction) -> np.float32:
    """The float32 nearest to a number, ties to even, by integers alone."""
    if exact == 0:
        return np.float32(0)
    exponent = max(-126, (abs(exact.numerator).bit_length() - exact.denominator.bit_length()))
    while abs(exact) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while exponent > -126 and abs(exact) < Fraction(2) ** exponent:
        exponent -= 1
    return np.float32(round(exact / Fraction(2) ** (exponent - 23)) * 2.0 ** (exponent - 23))  # Python rounds a fraction's ties to even


def by_hand(weight: np.ndarray, a: np.ndarray, b: np.ndarray, scale: float) -> np.ndarray:
    """The definition, one element after the other, in Python's own float64."""
    merged = np.empty(weight.shape, np.float32)
    for i, j in np.ndindex(*weight.shape):
        total = 0.0
        for r in range(a.shape[0]):
            product = float(b[i, r]) * float(a[r, j])
            assert Fraction(product) == Fraction(float(b[i, r])) * Fraction(float(a[r, j]))  # exact, so that an FMA could not differ here
            total = total + product
        delta = total * scale
        merged[i, j] = float32(Fraction(float(weight[i, j]) + delta))
    return merged


def bits(tensor: np.ndarray) -> bytes:
    """Zeros of either sign are one: the fractions of `by_hand` know no -0."""
    return (tensor + np.zeros(1, tensor.dtype)).tobytes()


def done(tmp_path: Path, adapter: Adapter, tensors: Tensors, config: Mapping[str, Any], name: str = "out", **how: Any) -> Path:
    merge(adapter, write_base(tmp_path / f"base_{name}", tensors, config), tmp_path / name, **how)
    return tmp_path / name
