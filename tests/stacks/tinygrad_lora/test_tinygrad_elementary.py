"""Elementary functions of the tinygrad stack against what capabilities.json declares, and at the edges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import erf

from contract.worker.process import RequestFailed, StackProcess

SIZE = 4096
DECLARED = json.loads((Path(__file__).parents[3] / "stacks" / "tinygrad_lora" / "capabilities.json").read_text())["elementary"]
EXACT = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "reciprocal": np.reciprocal, "tanh": np.tanh, "erf": erf, "sin": np.sin, "cos": np.cos,
}  # fmt: skip
ON_THE_HOST = ("sin", "cos")
"""RoPE's tables alone use these, in float64."""
ON_THE_CPU = [entry for entry in DECLARED if "CPU" in entry.get("devices", ["CPU"])]


def compute(stack: StackProcess, function: str, x: np.ndarray) -> np.ndarray:
    """Padded to one size, so that each function and dtype is compiled once."""
    padded = np.resize(x, SIZE)
    return stack.compute("elementary", {"function": function, "dtype": x.dtype.name}, {"x": padded}).tensors["y"][: x.size]


def test_each_function_and_dtype_is_declared() -> None:
    wanted = {(f, d) for f in EXACT for d in ("float32", "float64") if d == "float64" or f not in ON_THE_HOST}
    assert {(entry["function"], entry["dtype"]) for entry in ON_THE_CPU} == wanted


# SciPy has erf in no more than float64: tier A holds that one against mpmath
@pytest.mark.parametrize(
    "declared",
    [one for one in ON_THE_CPU if (one["function"], one["dtype"]) != ("erf", "float64")],
    ids=lambda entry: f"{entry['function']}-{entry['dtype']}",
)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_error_is_within_what_is_declared(stack: StackProcess, declared: dict[str, Any], seed: int) -> None:
    low, high, dtype = declared["low"], declared["high"], np.dtype(declared["dtype"])
    generator = np.random.default_rng(seed)
    # dense towards 0 (of a logarithm towards 1, its zero), and even over the part where the function changes
    centre = 1.0 if declared["function"] == "log" else 0.0
    start, end = max(low, -800.0), min(high, 800.0)
    signs = generator.choice([-1.0, 1.0], SIZE // 2) if low < 0 else 1.0
    near = centre + signs * np.exp(generator.uniform(-40, np.log(end - centre), SIZE // 2))
    x = np.clip(np.concatenate([near, generator.uniform(start, end, SIZE // 2)]), start, end).astype(dtype)
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


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_others_at_the_edges(stack: StackProcess, dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e30, -1e30], dtype)
    with np.errstate(divide="ignore", invalid="ignore"):
        for function in ("tanh", "erf", "sqrt", "reciprocal"):
            got, wanted = compute(stack, function, x), EXACT[function](x)
            np.testing.assert_allclose(got, wanted, rtol=np.finfo(dtype).eps, atol=0)
            finite = ~np.isnan(wanted)
            np.testing.assert_array_equal(np.signbit(got)[finite], np.signbit(wanted)[finite])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_and_erf_are_as_precise_next_to_zero_as_elsewhere(stack: StackProcess, dtype: str) -> None:
    x = np.array([1e-6, -1e-6, 1e-20, 3e-38], dtype)
    np.testing.assert_allclose(compute(stack, "tanh", x), x, rtol=2 * np.finfo(dtype).eps + 1e-12, atol=0)
    np.testing.assert_allclose(compute(stack, "erf", x), x * (2 / np.sqrt(np.pi)), rtol=2 * np.finfo(dtype).eps + 1e-12, atol=0)


def test_sine_in_float32_is_not_supported(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="sin for RoPE's tables alone, in float64; got float32") as caught:
        compute(stack, "sin", np.zeros(1, np.float32))
    assert caught.value.error_class == "NotSupported"


def test_another_function_is_not_supported(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="allowed: exp, log, sqrt, reciprocal, tanh, erf, sin, cos") as caught:
        compute(stack, "gamma", np.zeros(1, np.float32))
    assert caught.value.error_class == "NotSupported"
