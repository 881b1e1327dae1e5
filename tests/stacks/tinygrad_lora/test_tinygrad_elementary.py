"""exp and log of the tinygrad stack against what capabilities.json declares, and at the edges."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.worker.process import RequestFailed, StackProcess

SIZE = 4096
DECLARED = json.loads((Path(__file__).parents[3] / "stacks" / "tinygrad_lora" / "capabilities.json").read_text())["elementary"]
EXACT = {"exp": np.exp, "log": np.log}


@pytest.fixture(scope="module")
def stack() -> Iterator[StackProcess]:
    with StackProcess("tinygrad_lora", [sys.executable, "-m", "stacks.tinygrad_lora.worker"], "CPU") as process:
        yield process


def compute(stack: StackProcess, function: str, x: np.ndarray) -> np.ndarray:
    """Padded to one size, so that each function and dtype is compiled once."""
    padded = np.resize(x, SIZE)
    return stack.compute("elementary", {"function": function, "dtype": x.dtype.name}, {"x": padded}).tensors["y"][: x.size]


def test_each_function_and_dtype_is_declared() -> None:
    assert {(entry["function"], entry["dtype"]) for entry in DECLARED} == {(f, d) for f in EXACT for d in ("float32", "float64")}


@pytest.mark.parametrize("declared", DECLARED, ids=lambda entry: f"{entry['function']}-{entry['dtype']}")
@given(seed=st.integers(0, 2**32 - 1))
def test_the_error_is_within_what_is_declared(stack: StackProcess, declared: dict[str, Any], seed: int) -> None:
    low, high, dtype = declared["low"], declared["high"], np.dtype(declared["dtype"])
    generator = np.random.default_rng(seed)
    # dense towards the end where the function is 1 or 0, and even over the range
    away = np.exp(generator.uniform(-40, np.log(high - low), SIZE // 2))
    near = high - away if declared["function"] == "exp" else low + away
    x = np.clip(np.concatenate([near, generator.uniform(low, high, SIZE // 2)]), low, high).astype(dtype)
    wide = np.float64 if dtype == np.float32 else np.longdouble
    exact = EXACT[declared["function"]](x.astype(wide))
    spacing = np.spacing(np.abs(exact.astype(dtype))).astype(wide)
    error = np.abs(compute(stack, declared["function"], x).astype(wide) - exact)
    assert (error <= declared["ulp"] * spacing + declared["absolute"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exp_at_the_edges(stack: StackProcess, dtype: str) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, -2000.0, 2000.0], dtype)
    np.testing.assert_array_equal(compute(stack, "exp", x), np.array([1, 1, np.inf, 0, np.nan, np.inf, 0, 0, np.inf], dtype))


@pytest.mark.parametrize(("dtype", "largest"), [("float32", 88.7228), ("float64", 709.7827)])
def test_exp_is_finite_up_to_the_largest_number(stack: StackProcess, dtype: str, largest: float) -> None:
    x = np.array([largest, largest + 0.001], dtype)
    first, second = compute(stack, "exp", x)
    assert np.isfinite(first)
    assert second == np.inf


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_at_the_edges(stack: StackProcess, dtype: str) -> None:
    smallest = np.finfo(dtype).smallest_subnormal
    x = np.array([1.0, 0.0, -0.0, np.inf, -np.inf, np.nan, -1.0, smallest, np.finfo(dtype).max, 0.5], dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = np.log(x.astype(np.longdouble)).astype(dtype)
    np.testing.assert_allclose(compute(stack, "log", x), expected, rtol=np.finfo(dtype).eps, atol=0)


def test_another_function_is_not_supported(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="allowed: exp, log") as caught:
        compute(stack, "tanh", np.zeros(1, np.float32))
    assert caught.value.error_class == "NotSupported"
