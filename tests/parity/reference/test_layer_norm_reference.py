"""LayerNorm's reference against its formula to 300 bits."""

from __future__ import annotations

from collections.abc import Mapping

import mpmath
import numpy as np
import pytest

from parity.reference.layer_norm import layer_norm
from parity.reference.running_error import REFERENCE
from tests.parity.reference import high_precision


@pytest.mark.parametrize("offset", [0.0, 10.0])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_values_and_gradients(eps: float, offset: float) -> None:
    rng = np.random.default_rng(2)
    tensors = {
        "x": rng.standard_normal((2, 5)) + offset,
        "weight": rng.standard_normal(5),
        "bias": rng.standard_normal(5),
        "y_bar": rng.standard_normal((2, 5)),
    }

    def formula(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        d = tensors["x"] - np.sum(tensors["x"], axis=-1, keepdims=True) / 5
        variance = np.sum(d**2, axis=-1, keepdims=True) / 5
        y: np.ndarray = d / high_precision.sqrt(variance + mpmath.mpf(eps)) * tensors["weight"] + tensors["bias"]
        return y

    exact = high_precision.exactly(formula, tensors, "y", ("x", "weight", "bias"))
    high_precision.assert_within_its_own_error(layer_norm, tensors, {"eps": eps}, exact)


def test_a_constant_row_is_the_bias() -> None:
    tensors = {"x": np.full((2, 8), 3.0), "weight": np.full(8, 0.7), "bias": np.arange(8) / 10}
    np.testing.assert_array_equal(layer_norm(tensors, {"eps": 1e-5}, REFERENCE)["y"].value, np.tile(tensors["bias"], (2, 1)))
