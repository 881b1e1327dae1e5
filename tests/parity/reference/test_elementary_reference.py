"""The reference of exp and log against mpmath at twice its precision."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from parity.checks import elementary as check
from parity.reference import elementary

POINTS = {"exp": [-745.9, -104.0, -88.7, -1.0, -1e-10, -5e-324, 0.0], "log": [1.0, 1 + 2.0**-23, 1.5, 2.0, 1e6]}
SUBNORMAL = -671.0
"""exp of less has a tail, 2^-53 of it and less, that float64 can't hold in full."""


def error_in_ulp(function: str, x: np.ndarray) -> float:
    """Of head + tail, in ulp of x's dtype."""
    head, tail = elementary.evaluate(function, x)
    worst = mpmath.mpf(0)
    with mpmath.workprec(300):
        for value, high, low in zip(x, head, tail, strict=True):
            exact = {"exp": mpmath.exp, "log": mpmath.log}[function](mpmath.mpf(float(value)))
            ulp = mpmath.mpf(float(np.spacing(x.dtype.type(abs(float(exact))))))
            worst = max(worst, abs(mpmath.mpf(float(high)) + mpmath.mpf(float(low)) - exact) / ulp)
    return float(worst)


@pytest.mark.parametrize("function", ["exp", "log"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_to_well_under_a_thousandth_of_an_ulp(function: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    low, high = check.RANGES[function, dtype]
    points = [p for p in POINTS[function] if low <= p <= high]
    x = np.concatenate([points, rng.uniform(low, high, 300)]).astype(dtype)
    assert error_in_ulp(function, x[x > SUBNORMAL]) < 1e-3
    if x.dtype == np.float64 and function == "exp":
        assert error_in_ulp(function, x[x <= SUBNORMAL]) <= 0.5


def test_a_float64_value_needs_its_tail() -> None:
    head, tail = elementary.evaluate("exp", np.array([-1.0]))
    assert float(tail[0]) != 0
    assert abs(float(tail[0])) <= float(np.spacing(head[0])) / 2


def test_exact_values_have_no_tail() -> None:
    for function, x, y in (("exp", 0.0, 1.0), ("log", 1.0, 0.0)):
        head, tail = elementary.evaluate(function, np.array([x]))
        assert (float(head[0]), float(tail[0])) == (y, 0.0)


@pytest.mark.parametrize("function", ["exp", "log"])
def test_the_points_cover_the_range_that_is_used(function: str) -> None:
    for dtype in ("float32", "float64"):
        low, high = check.RANGES[function, dtype]
        (case,) = check.CHECKS[("exp", "log").index(function)].fixed_cases()  # type: ignore[misc]
        x = case.inputs[dtype]["x"].astype(np.float64)
        assert x.min() >= low
        assert x.max() <= high
        decades = np.histogram(x, bins=np.linspace(low, high, 21))[0]
        assert decades.min() > 10
        near = np.abs(x) if function == "exp" else x - 1
        assert np.sum(near < 1e-4) > 100
