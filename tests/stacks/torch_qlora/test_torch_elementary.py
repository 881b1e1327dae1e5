"""The declared errors of the elementary functions, against wider arithmetic, over the declared ranges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

import stacks.torch_qlora
from contract.worker.capabilities import FUNCTIONS, Capabilities, Elementary
from stacks.torch_qlora.elementary import elementary

CAPABILITIES = Capabilities.model_validate(json.loads(Path(stacks.torch_qlora.__file__).with_name("capabilities.json").read_text()))
DECLARED = CAPABILITIES.elementary_on("CPU")
POINTS = 100_000


def _erf(x: np.ndarray) -> np.ndarray:
    """To 90 bits, in two float64 pieces; extended precision has none."""
    with mpmath.workprec(90):
        exact = [mpmath.erf(mpmath.mpf(float(one))) for one in x]
        return np.array([np.longdouble(float(one)) + np.longdouble(float(one - float(one))) for one in exact])


EXACT: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "exp": np.exp, "log": np.log, "sqrt": np.sqrt, "reciprocal": np.reciprocal, "tanh": np.tanh, "erf": _erf, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


def _points(declared: Elementary) -> np.ndarray:
    """Even over the range, over its magnitudes, over the distance from its low end, and over the part in which the function moves."""
    count = POINTS if declared.function != "erf" else POINTS // 50
    smallest = float(np.finfo(declared.dtype).smallest_normal)
    magnitudes = np.geomspace(smallest, max(abs(declared.low), declared.high), count)
    near = declared.low + np.geomspace(1e-12, min(declared.high - declared.low, 1e300), count)
    even = np.linspace(max(declared.low, -1000), min(declared.high, 1e6), count)
    points = np.concatenate((even, np.linspace(-10, 10, count), magnitudes, -magnitudes, near))
    clipped = np.clip(points, declared.low, declared.high).astype(declared.dtype)
    # The reciprocal of a subnormal number overflows.
    return clipped if declared.function != "reciprocal" else clipped[np.abs(clipped) >= smallest]


@pytest.mark.parametrize("declared", DECLARED, ids=lambda declared: f"{declared.function}-{declared.dtype}")
def test_declared_error_holds(declared: Elementary) -> None:
    x = _points(declared)
    wide = x.astype(np.longdouble)
    exact = EXACT[declared.function](wide)
    error = np.abs(elementary(declared.function, torch.from_numpy(x)).numpy() - exact)
    allowed = declared.ulp * np.spacing(np.abs(exact).astype(declared.dtype)).astype(np.longdouble) + declared.absolute
    assert np.all(error <= allowed)


def test_each_function_is_declared_in_each_dtype_on_each_device() -> None:
    for device in CAPABILITIES.devices:
        declared = [(entry.function, entry.dtype) for entry in CAPABILITIES.elementary_on(device)]
        everywhere = {(function, dtype) for function in FUNCTIONS for dtype in ("float32", "float64")}
        assert set(declared) == everywhere - {("sin", "float32"), ("cos", "float32")}
        assert len(declared) == len(set(declared))


def test_unknown_functions_and_those_that_only_the_host_needs_are_refused() -> None:
    with pytest.raises(ValueError, match="function is 'sinh'; allowed: exp, log, sqrt"):
        elementary("sinh", torch.zeros(1))
    with pytest.raises(ValueError, match=r"sin of torch.float32; allowed: torch.float64, in which RoPE's tables are made"):
        elementary("sin", torch.zeros(1))
