"""One operation of the stack, asked in this process, its answer held against the contract's table."""

from __future__ import annotations

from typing import Any

import numpy as np

from contract.worker.process import check_answer
from stacks.torch_qlora.ops import TorchQlora
from tests.stacks.torch_qlora.tiny_torch_graph import gamma

DTYPES = ("float32", "float64")


def computed(op: str, attrs: dict[str, Any], tensors: dict[str, np.ndarray], dtype: str) -> dict[str, np.ndarray]:
    """The answer to `compute` in a dtype, floats among the tensors cast to it."""
    asked = {name: tensor.astype(dtype) if tensor.dtype.kind == "f" else tensor for name, tensor in tensors.items()}
    got = dict(TorchQlora("CPU").compute(op, attrs | {"dtype": dtype}, asked).tensors)
    check_answer("torch_qlora", op, attrs | {"dtype": dtype}, asked, got)
    return got


def drawn(seed: int, *shape: int, dtype: str = "float64") -> np.ndarray:
    """Gaussian numbers that the dtype holds, as float64: what a formula in extended precision starts from."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype).astype(np.float64)


def wide(array: np.ndarray) -> np.ndarray:
    """In extended precision."""
    return array.astype(np.longdouble)


def assert_rounded(got: np.ndarray, exact: np.ndarray, size: np.ndarray, roundings: int, dtype: str) -> None:
    """|got - exact| <= gamma_roundings size, where size is the formula of the absolute values."""
    assert got.dtype == np.dtype(dtype)
    assert np.any(exact != 0)
    assert np.all(np.abs(got - exact) <= gamma(roundings, dtype) * np.abs(size))
