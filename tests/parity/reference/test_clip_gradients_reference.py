"""The reference of clipping against torch and against 40 digits."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from parity.reference.clip_gradients import clip_gradients
from parity.reference.running_error import REFERENCE

RNG = np.random.default_rng(7)
TENSORS = {"a": RNG.standard_normal((3, 4)), "b": 1e3 * RNG.standard_normal(5)}


@pytest.mark.parametrize("max_norm", [0.25, 1e9])
def test_torch(max_norm: float) -> None:
    leaves = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.float64)) for array in TENSORS.values()]
    for leaf, array in zip(leaves, TENSORS.values(), strict=True):
        leaf.grad = torch.tensor(array)
    norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
    got = clip_gradients(TENSORS, {"max_norm": max_norm}, REFERENCE)
    assert abs(float(got["norm"].value) - float(norm)) <= 2 * float(got["norm"].error)
    for name, leaf in zip(TENSORS, leaves, strict=True):
        assert leaf.grad is not None
        clipped = got[f"{name}_clipped"]
        assert np.all(np.abs(clipped.value - leaf.grad.numpy()) <= 2 * clipped.error)
    assert np.array_equal(got["a_clipped"].value, TENSORS["a"]) is (max_norm > 1e6)


def test_forty_digits_lie_within_the_references_own_error() -> None:
    got = clip_gradients(TENSORS, {"max_norm": 0.25}, REFERENCE)
    with mpmath.workdps(40):
        norm = mpmath.sqrt(mpmath.fsum(mpmath.mpf(float(g)) ** 2 for array in TENSORS.values() for g in array.reshape(-1)))
        scale = mpmath.mpf(0.25) / (norm + mpmath.mpf("1e-6"))
        assert abs(float(norm - mpmath.mpf(float(got["norm"].value)))) <= float(got["norm"].error)
        exact = np.array([float(mpmath.mpf(float(g)) * scale) for g in TENSORS["b"]])
    assert np.all(np.abs(got["b_clipped"].value - exact) <= got["b_clipped"].error)


def test_by_hand() -> None:
    got = clip_gradients({"a": np.array([[3.0]]), "b": np.array([0.0, -4.0])}, {"max_norm": 1.0}, REFERENCE)
    assert float(got["norm"].value) == 5
    np.testing.assert_allclose(got["b_clipped"].value, [0.0, -4 / 5.000001])


def test_gradients_of_zero_stay_so() -> None:
    got = clip_gradients({"a": np.zeros((2, 2)), "b": np.zeros(3)}, {"max_norm": 1e-3}, REFERENCE)
    assert not any(one.value.any() or one.error.any() for one in got.values())
