"""SiLU's bounds: every legal arrangement stays inside, planted errors do not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from parity.checks import activations
from parity.reference.silu import silu
from tests.parity.judge import legal_functions as legal
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, roundings

Arrays = Mapping[str, np.ndarray]


def drawn(kind: str, dtype: str = "float32", seed: int = 0, length: int = 65) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": activations.x_of(kind, seed, (length,))[dtype], "y_bar": rng.standard_normal(length).astype(dtype)}


def reciprocal_of(x: Number) -> Number:
    return legal.reciprocal(legal.one_plus(legal.exp(-x)))


def quotient(x: Number) -> Number:
    return x.rounding.constant(1.0) / legal.one_plus(legal.exp(-x))


def by_sign(x: Number) -> Number:
    """e^x / (1 + e^x) where x is negative, so that nothing overflows."""
    small = legal.exp(x.map(lambda value: -np.abs(value)))
    negative, positive = small / legal.one_plus(small), x.rounding.constant(1.0) / legal.one_plus(small)
    return negative.map(lambda value: np.where(x.value < 0, value, positive.value))


SIGMOIDS = (reciprocal_of, quotient, by_sign)


def closed(x: Number, sigma: Number, bar: Number) -> Number:
    return bar * (sigma * ((-sigma + 1.0) * x + 1.0))


def shares(x: Number, sigma: Number, bar: Number) -> Number:
    """Autograd of x times sigmoid(x)."""
    return bar * sigma + (bar * x) * ((-sigma + 1.0) * sigma)


GRADIENTS = (closed, shares)


@pytest.mark.parametrize("kind", activations.X_KINDS)
def test_every_legal_way_stays_inside(kind: str) -> None:
    tensors = drawn(kind)
    judged = primitive_bounds.Judged(silu, tensors, {}, "float32")
    with np.errstate(all="ignore"):
        for rounding in roundings():
            x, bar = (rounding.given(tensors[name]) for name in ("x", "y_bar"))
            for sigmoid in SIGMOIDS:
                for gradient in GRADIENTS:
                    sigma = sigmoid(x)
                    found = judged.ratios({"y": x * sigma, "x_grad": gradient(x, sigma, bar)})
                    assert max(found.values()) <= 1, (sigmoid.__name__, gradient.__name__, str(rounding), found)
            direct = judged.ratios({"y": x / legal.one_plus(legal.exp(-x)), "x_grad": closed(x, quotient(x), bar)})
            assert max(direct.values()) <= 1, ("x / (1 + e^-x)", str(rounding), direct)


def by_torch(tensors: Arrays, bug: str = "") -> dict[str, np.ndarray]:
    (x,) = primitive_bounds.leaves(tensors, "x")
    ways = {
        "": lambda: torch.nn.functional.silu(x),
        "composed": lambda: x * torch.sigmoid(x),
        "float32": lambda: torch.nn.functional.silu(x.float()).to(x.dtype),
        "GELU's sigmoid": lambda: x * torch.sigmoid(1.702 * x),
        "sigmoid frozen": lambda: x * torch.sigmoid(x).detach(),
        "sigmoid off by 1e-9": lambda: x * (torch.sigmoid(x) * (1 + 1e-9)),
    }
    return primitive_bounds.answered({"y": ways[bug]()}, {"x": x}, tensors["y_bar"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", activations.X_KINDS)
def test_torch_stays_inside(kind: str, dtype: str) -> None:
    tensors = drawn(kind, dtype)
    for way in ("", "composed"):
        found = primitive_bounds.ratios(silu, tensors, {}, dtype, by_torch(tensors, way))
        assert max(found.values()) <= 1, (way, found)
        if (kind, dtype) == ("gaussian", "float32"):
            assert min(found.values()) > 0.05, "the bound is tight"


@pytest.mark.parametrize("kind", ["gaussian", "turning", "exp leaves float32", "subnormal"])
def test_just_past_the_bound_fails(kind: str) -> None:
    primitive_bounds.assert_edges(silu, drawn(kind), {})


@pytest.mark.parametrize("bug", ["float32", "GELU's sigmoid", "sigmoid off by 1e-9"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn("gaussian", "float64")
    found = primitive_bounds.ratios(silu, tensors, {}, "float64", by_torch(tensors, bug))
    assert min(found.values()) > 1e4, found


def test_a_gradient_without_the_sigmoids_share_fails() -> None:
    tensors = drawn("gaussian", "float64")
    assert primitive_bounds.ratios(silu, tensors, {}, "float64", by_torch(tensors, "sigmoid frozen"))["x_grad"] > 1e10


def test_far_out_the_bound_is_about_nothing() -> None:
    """Where e^-x is below every rounding, silu(x) is x and its slope 1: no factor of x multiplies a rounding of 1 - sigmoid(x)."""
    tensors = {"x": np.array([1e10, 100.0, -1e10, -200.0], dtype=np.float32), "y_bar": np.ones(4, dtype=np.float32)}
    limits = primitive_bounds.Judged(silu, tensors, {}, "float32").limits
    assert limits["x_grad"].max() < 1e-6
    assert np.all(limits["y"] <= 1e-6 * np.abs(tensors["x"]))
    assert np.all(limits["y"][2:] < 1e-25)
