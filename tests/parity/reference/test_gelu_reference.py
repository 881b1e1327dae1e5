"""The references of GELU against 40 digits, differentiated numerically."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest

from parity.reference.gelu import gelu
from parity.reference.running_error import REFERENCE

X = np.array([-1e4, -30.0, -6.0, -2.5, -0.7517916, -0.1, -1e-30, 0.0, 1e-8, 0.7, 2.0, 2.5, 3.0, 9.0, 30.0, 1e6])


def by_erf(x: mpmath.mpf) -> mpmath.mpf:
    return x * mpmath.ncdf(x)


def by_tanh(x: mpmath.mpf) -> mpmath.mpf:
    return x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))


FORMS = {"none": by_erf, "tanh": by_tanh}
each_form = pytest.mark.parametrize("form", FORMS)


def forty_digits(function: Callable[[mpmath.mpf], mpmath.mpf]) -> tuple[np.ndarray, np.ndarray]:
    with mpmath.workdps(40):
        points = [mpmath.mpf(float(x)) for x in X]
        return np.array([float(function(x)) for x in points]), np.array([float(mpmath.diff(function, x)) for x in points])


@each_form
def test_forty_digits_lie_within_the_references_own_error(form: str) -> None:
    got = gelu({"x": X, "y_bar": np.ones_like(X)}, {"approximate": form}, REFERENCE)
    value, slope = forty_digits(FORMS[form])
    assert np.all(np.abs(got["y"].value - value) <= got["y"].error)
    assert np.all(np.abs(got["x_grad"].value - slope) <= got["x_grad"].error + 1e-30)  # 1e-30: the numerical derivative's
    np.testing.assert_allclose(got["y"].value[3:], value[3:], rtol=1e-13)
    np.testing.assert_allclose(got["x_grad"].value[3:], slope[3:], rtol=1e-12, atol=1e-14)
    assert got["x_grad"].value[3:].all()


def test_the_two_forms_differ_most_at_two_to_three() -> None:
    x = np.linspace(0, 6, 601)
    apart = np.abs(np.subtract(*(gelu({"x": x}, {"approximate": form}, REFERENCE)["y"].value for form in FORMS)))
    assert 2 < x[apart.argmax()] < 3
    assert 4e-4 < apart.max() < 5e-4


@each_form
def test_values_at_the_ends(form: str) -> None:
    with np.errstate(all="ignore"):
        y = gelu({"x": np.array([np.inf, 0.0, -0.0, np.nan])}, {"approximate": form}, REFERENCE)["y"].value
    np.testing.assert_array_equal(y, [np.inf, 0.0, 0.0, np.nan])


def test_another_form_is_refused() -> None:
    with pytest.raises(KeyError, match="sigmoid"):
        gelu({"x": X}, {"approximate": "sigmoid"}, REFERENCE)
