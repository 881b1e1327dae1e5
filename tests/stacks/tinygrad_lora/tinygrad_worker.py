"""The tinygrad stack's worker on its CPU, for tests of its operations."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from contract.worker.process import StackProcess

COMMAND = (sys.executable, "-m", "stacks.tinygrad_lora.worker")
DTYPES = ("float32", "float64")

Arrays = Mapping[str, np.ndarray]


def start() -> StackProcess:
    """A worker of its own; a context manager."""
    return StackProcess("tinygrad_lora", COMMAND, "CPU")


def draw(dtype: str, seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Named standard normal tensors."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def ask(stack: StackProcess, op: str, tensors: Arrays, **attrs: Any) -> Arrays:
    """What an operation answers, in the dtype of its tensors."""
    floats = [array.dtype.name for array in tensors.values() if array.dtype.kind == "f"]
    return stack.compute(op, {"dtype": floats[0] if floats else "float32", **attrs}, tensors).tensors


def close(got: np.ndarray, wanted: np.ndarray, roundings: int) -> None:
    """Within so many roundings of the largest of `wanted`: enough to tell a formula from another, tier A holds the bound."""
    limit = roundings * float(np.finfo(got.dtype).eps) * float(np.abs(wanted).max())
    np.testing.assert_allclose(got.astype(np.float64), wanted, rtol=0, atol=limit)


def double(tensors: Arrays) -> dict[str, np.ndarray]:
    """The same numbers in float64, for a formula in NumPy."""
    return {name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in tensors.items()}
