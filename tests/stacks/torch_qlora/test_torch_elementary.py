"""The declared errors of exp and log, against wider arithmetic, densely over the declared ranges."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import stacks.torch_qlora
from contract.worker.capabilities import Capabilities, Elementary
from stacks.torch_qlora.elementary import elementary

CAPABILITIES = Capabilities.model_validate(json.loads(Path(stacks.torch_qlora.__file__).with_name("capabilities.json").read_text()))
POINTS = 200_000


def _points(declared: Elementary) -> np.ndarray:
    """Evenly spaced, and evenly spaced in the logarithm of the distance to the end where most of the floats lie."""
    span = declared.high - declared.low
    distance = np.geomspace(1e-12, span, POINTS)
    near = declared.high - distance if declared.function == "exp" else declared.low + distance
    points = np.concatenate((np.linspace(declared.low, declared.high, POINTS), near))
    return np.clip(points, declared.low, declared.high).astype(declared.dtype)


@pytest.mark.parametrize("declared", CAPABILITIES.elementary, ids=lambda declared: f"{declared.function}-{declared.dtype}")
def test_declared_error_holds(declared: Elementary) -> None:
    x = _points(declared)
    wide = x.astype(np.float64 if declared.dtype == "float32" else np.longdouble)
    exact = np.exp(wide) if declared.function == "exp" else np.log(wide)
    error = np.abs(elementary(declared.function, torch.from_numpy(x)).numpy().astype(wide.dtype) - exact)
    allowed = declared.ulp * np.spacing(np.abs(exact).astype(declared.dtype)).astype(wide.dtype) + declared.absolute
    assert np.all(error <= allowed)


def test_each_function_is_declared_in_each_dtype() -> None:
    declared = {(entry.function, entry.dtype) for entry in CAPABILITIES.elementary}
    assert declared == {(function, dtype) for function in ("exp", "log") for dtype in ("float32", "float64")}


def test_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match="function is 'sin'; allowed: exp, log"):
        elementary("sin", torch.zeros(1))
