"""The references of SiLU and SwiGLU against 40 digits, differentiated numerically, and against autograd."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch

from parity.reference.running_error import REFERENCE
from parity.reference.silu import silu
from parity.reference.swiglu import swiglu

X = np.array([-700.0, -40.0, -3.0, -1.2784645, -0.5, -1e-30, 0.0, 1e-8, 0.7, 2.5, 16.0, 50.0, 800.0])


def forty_digits(x: float) -> tuple[float, float]:
    def function(value: mpmath.mpf) -> mpmath.mpf:
        return value / (1 + mpmath.exp(-value))

    with mpmath.workdps(40):
        return float(function(mpmath.mpf(x))), float(mpmath.diff(function, mpmath.mpf(x)))


def test_forty_digits_lie_within_the_references_own_error() -> None:
    got = silu({"x": X, "y_bar": np.ones_like(X)}, {}, REFERENCE)
    value, slope = np.array([forty_digits(x) for x in X]).T
    assert np.all(np.abs(got["y"].value - value) <= got["y"].error + 1e-320)
    assert np.all(np.abs(got["x_grad"].value - slope) <= got["x_grad"].error + 1e-320)
    np.testing.assert_allclose(got["y"].value, value, rtol=1e-14)
    np.testing.assert_allclose(got["x_grad"].value, slope, rtol=1e-13, atol=1e-15)
    assert got["x_grad"].value.all()


def test_by_hand() -> None:
    got = silu({"x": np.array([0.0, np.log(3.0)]), "y_bar": np.array([2.0, 1.0])}, {}, REFERENCE)
    np.testing.assert_allclose(got["y"].value, [0, 0.75 * np.log(3)])
    np.testing.assert_allclose(got["x_grad"].value, [1.0, 0.75 * (1 + np.log(3) / 4)])


@pytest.mark.parametrize(("x", "y"), [(np.inf, np.inf), (0.0, 0.0)])
def test_values_at_the_ends(x: float, y: float) -> None:
    with np.errstate(all="ignore"):
        assert silu({"x": np.array([x])}, {}, REFERENCE)["y"].value[0] == y
        assert np.isnan(silu({"x": np.array([np.nan])}, {}, REFERENCE)["y"].value[0])


def test_without_a_cotangent_there_is_no_gradient() -> None:
    assert set(silu({"x": X}, {}, REFERENCE)) == {"y"}
    assert set(swiglu({"gate": X[None], "up": X[None]}, {}, REFERENCE)) == {"y"}


def test_swiglu_is_autograd() -> None:
    rng = np.random.default_rng(2)
    tensors = {name: 2 * rng.standard_normal((4, 9)) for name in ("gate", "up", "y_bar")}
    gate, up = (torch.tensor(tensors[name], requires_grad=True) for name in ("gate", "up"))
    y = gate / (1 + torch.exp(-gate)) * up
    gradients = torch.autograd.grad(y, [gate, up], torch.tensor(tensors["y_bar"]))
    got = swiglu(tensors, {}, REFERENCE)
    np.testing.assert_allclose(got["y"].value, y.detach().numpy(), rtol=1e-14)
    for name, gradient in zip(("gate_grad", "up_grad"), gradients, strict=True):
        np.testing.assert_allclose(got[name].value, gradient.numpy(), rtol=1e-13, atol=1e-15)
        assert np.all(got[name].value != 0)
