"""RMSNorm's reference against its formula to 300 bits."""

from __future__ import annotations

from collections.abc import Mapping

import mpmath
import numpy as np
import pytest

from parity.reference.rms_norm import rms_norm
from tests.parity.reference import high_precision


@pytest.mark.parametrize("scale", [1e-2, 1.0, 30.0])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_values_and_gradients(eps: float, scale: float) -> None:
    rng = np.random.default_rng(1)
    x, weight, y_bar = rng.standard_normal((2, 5)) * scale, rng.standard_normal(5), rng.standard_normal((2, 5))

    def formula(tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        mean = np.sum(tensors["x"] ** 2, axis=-1, keepdims=True) / 5
        y: np.ndarray = tensors["x"] / high_precision.sqrt(mean + mpmath.mpf(eps)) * tensors["weight"]
        return y

    tensors = {"x": x, "weight": weight, "y_bar": y_bar}
    exact = high_precision.exactly(formula, tensors, "y", ("x", "weight"))
    high_precision.assert_within_its_own_error(rms_norm, tensors, {"eps": eps}, exact)


def test_no_gradient_is_computed_without_a_cotangent() -> None:
    tensors = {"x": np.ones((1, 3)), "weight": np.ones(3)}
    assert set(rms_norm(tensors, {"eps": 1e-5}, high_precision.REFERENCE)) == {"y"}
