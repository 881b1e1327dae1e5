"""Softmax's reference against its formula to 300 bits, and what it is by definition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from parity.checks.softmax import LOGITS
from parity.reference.running_error import REFERENCE
from parity.reference.softmax import softmax
from tests.parity.reference import high_precision


def formula(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    e = high_precision.exp(tensors["x"])
    y: np.ndarray = e / np.sum(e, axis=-1, keepdims=True)
    return y


@pytest.mark.parametrize("kind", ["gaussian", "all equal", "hidden entries", "spread", "huge"])
def test_values_and_gradients(kind: str) -> None:
    """exp of -inf is 0 in mpmath too; a huge logit has no exponent that it could not hold."""
    rng = np.random.default_rng(3)
    tensors = {"x": LOGITS[kind](rng, (3, 6)), "y_bar": rng.standard_normal((3, 6))}
    exact = high_precision.exactly(formula, tensors, "y", ("x",))
    high_precision.assert_within_its_own_error(softmax, tensors, {}, exact)


def test_a_hidden_entry_is_zero_and_has_no_gradient() -> None:
    x = np.array([[0.0, -np.inf, 1.0], [-np.inf, 2.0, -np.inf]])
    got = softmax({"x": x, "y_bar": np.array([[1.0, 2.0, 3.0]] * 2)}, {}, REFERENCE)
    for name in ("y", "x_grad"):
        assert not got[name].value[np.isinf(x)].any()
        assert not got[name].error[np.isinf(x)].any()
    assert got["y"].value[1, 1] == 1


def test_a_row_with_a_nan_is_nan_and_no_other() -> None:
    x = np.array([[0.0, np.nan, 1.0], [0.0, 1.0, 2.0]])
    with np.errstate(invalid="ignore"):
        got = softmax({"x": x, "y_bar": np.ones((2, 3))}, {}, REFERENCE)
    for name in ("y", "x_grad"):
        np.testing.assert_array_equal(np.isnan(got[name].value), [[True] * 3, [False] * 3])


def test_equal_entries_share_evenly() -> None:
    for count in (1, 2, 4, 8):
        got = softmax({"x": np.full((1, count), 0.3)}, {}, REFERENCE)
        np.testing.assert_array_equal(got["y"].value, np.full((1, count), 1 / count))
