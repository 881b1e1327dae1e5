"""The reference of exp and log against mpmath at twice its precision."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from parity.checks import elementary as check
from parity.reference import elementary

POINTS = {"exp": [-745.9, -104.0, -88.7, -1.0, -1e-10, -5e-324, 0.0], "log": [1.0, 1 + 2.0**-23, 1.5, 2.0, 1e6]}


def exactly(function: str, x: float) -> mpmath.mpf:
    return {"exp": mpmath.exp, "log": mpmath.log}[function](mpmath.mpf(x))


@pytest.mark.parametrize("function", ["exp", "log"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_errors_in_ulp_are_right_to_a_thousandth(function: str, dtype: str) -> None:
    """Of the nearest value and of values some ulp off, subnormal ones too, against mpmath at 300 bits."""
    rng = np.random.default_rng(1)
    low, high = check.RANGES[function, dtype]
    x = np.concatenate([[p for p in POINTS[function] if low <= p <= high], rng.uniform(low, high, 300)]).astype(dtype)
    exact = elementary.evaluate(function, x)
    y = exact.astype(np.float64).astype(dtype)
    y = (y + rng.integers(-3, 4, y.shape) * np.spacing(y)).astype(dtype)
    errors = elementary.error_in_ulp(exact, y)
    with mpmath.workprec(300):
        for value, answer, error, step in zip(x, y, errors, elementary.ulp(exact, dtype), strict=True):
            wanted = (mpmath.mpf(float(answer)) - exactly(function, float(value))) / mpmath.mpf(float(step))
            assert abs(float(wanted) - error) < 1e-3


def test_a_value_that_is_no_number_is_no_small_error() -> None:
    for dtype in ("float32", "float64"):
        exact = elementary.evaluate("exp", np.array([-1.0, -2.0], dtype=dtype))
        errors = elementary.error_in_ulp(exact, np.array([np.nan, np.inf], dtype=dtype))
        assert np.isnan(errors[0])
        assert np.isinf(errors[1])


def test_exact_values_have_no_error() -> None:
    for function, x, y in (("exp", 0.0, 1.0), ("log", 1.0, 0.0)):
        assert elementary.error_in_ulp(elementary.evaluate(function, np.array([x])), np.array([y])) == 0


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
