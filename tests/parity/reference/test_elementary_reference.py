"""The reference of elementary functions against mpmath at more than twice its precision."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

from contract.worker.capabilities import FUNCTIONS
from parity.checks.elementary_domains import DOMAINS, points
from parity.reference import elementary

DEFINED = [(function, dtype) for function, domain in DOMAINS.items() for dtype in domain.ranges]
each_function = pytest.mark.parametrize(("function", "dtype"), DEFINED, ids=[f"{function}-{dtype}" for function, dtype in DEFINED])

IDENTITIES = {
    "exp": lambda x: mpmath.mpf(1) / mpmath.exp(-x),
    "log": lambda x: 2 * mpmath.atanh((x - 1) / (x + 1)),
    "sqrt": lambda x: mpmath.power(x, mpmath.mpf(1) / 2),
    "reciprocal": lambda x: mpmath.mpf(1) / x,
    "tanh": lambda x: mpmath.mpf(1) if x > 400 else -mpmath.mpf(1) if x < -400 else mpmath.sinh(x) / mpmath.cosh(x),
    "erf": lambda x: mpmath.sign(x) * (1 - mpmath.erfc(min(abs(x), 100))),
    "sin": lambda x: mpmath.cos(x - mpmath.pi / 2),
    "cos": lambda x: mpmath.sin(x + mpmath.pi / 2),
}
"""Each function by another way, at a precision that its cancellations leave 300 bits of."""


def exactly(function: str, x: float) -> mpmath.mpf:
    with mpmath.workprec(3000):
        return IDENTITIES[function](mpmath.mpf(x))


def test_every_function_that_a_stack_may_declare_has_a_definition_and_a_domain() -> None:
    assert set(FUNCTIONS) == set(elementary.DEFINITIONS) == set(DOMAINS)


@each_function
def test_errors_in_ulp_are_right_to_a_thousandth(function: str, dtype: str) -> None:
    """Of the nearest value and of values some ulp off, subnormal ones too, by another formula."""
    rng = np.random.default_rng(1)
    x = points(function, dtype, 60, rng)
    exact = elementary.evaluate(function, x)
    y = exact.value.astype(dtype)
    y = (y + rng.integers(-3, 4, y.shape) * np.spacing(np.abs(y))).astype(dtype)
    errors = elementary.error_in_ulp(exact, y)
    with mpmath.workprec(300):
        for value, answer, error, step in zip(x, y, errors, exact.ulp, strict=True):
            wanted = (mpmath.mpf(float(answer)) - exactly(function, float(value))) / mpmath.mpf(float(step))
            assert abs(float(wanted) - error) < 1e-3, float(value)


def test_a_value_that_is_no_number_is_no_small_error() -> None:
    for dtype in ("float32", "float64"):
        exact = elementary.evaluate("exp", np.array([-1.0, -2.0], dtype=dtype))
        errors = elementary.error_in_ulp(exact, np.array([np.nan, np.inf], dtype=dtype))
        assert np.isnan(errors[0])
        assert np.isinf(errors[1])


@pytest.mark.parametrize(
    ("function", "x", "y"),
    [("exp", 0, 1), ("log", 1, 0), ("sqrt", 4, 2), ("reciprocal", -4, -0.25), ("tanh", 0, 0), ("erf", 0, 0), ("sin", 0, 0), ("cos", 0, 1)],
)
def test_exact_values_have_no_error(function: str, x: float, y: float) -> None:
    assert elementary.error_in_ulp(elementary.evaluate(function, np.array([float(x)])), np.array([float(y)])) == 0


def test_a_sine_next_to_its_zero_is_not_the_rounding_of_pi() -> None:
    """sin(float64 nearest to pi) is 1.2246e-16, all of it what rounding pi left; a reduction with too few bits gives noise."""
    (value,) = elementary.evaluate("sin", np.array([np.pi])).value
    assert value == pytest.approx(1.2246467991473531772e-16, rel=1e-15)


def test_special_values_are_those_of_ieee_754() -> None:
    infinity, zero, none = np.inf, 0.0, np.nan
    wanted = {
        "exp": [(infinity, infinity), (-infinity, zero), (none, none), (-0.0, 1.0)],
        "log": [(zero, -infinity), (infinity, infinity), (-1.0, none), (none, none)],
        "sqrt": [(-0.0, -0.0), (infinity, infinity), (-1.0, none), (none, none)],
        "reciprocal": [(zero, infinity), (-0.0, -infinity), (infinity, zero), (-infinity, -0.0), (none, none)],
        "tanh": [(infinity, 1.0), (-infinity, -1.0), (-0.0, -0.0), (none, none)],
        "erf": [(infinity, 1.0), (-infinity, -1.0), (-0.0, -0.0), (none, none)],
        "sin": [(-0.0, -0.0), (infinity, none), (none, none)],
        "cos": [(-0.0, 1.0), (infinity, none), (none, none)],
    }
    for function, pairs in wanted.items():
        x, y = (np.array(column) for column in zip(*pairs, strict=True))
        got = elementary.in_float64(function, x)
        np.testing.assert_array_equal(got, y)
        np.testing.assert_array_equal(np.signbit(got[~np.isnan(y)]), np.signbit(y[~np.isnan(y)]))
