"""GELU's bounds, by erf and by tanh: every legal arrangement stays inside, planted errors do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from parity.checks import activations
from parity.reference.gelu import gelu
from tests.parity.judge import legal_functions as legal
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings
from tests.parity.judge.test_silu_bounds import Arrays, drawn

C, K = math.sqrt(2 / math.pi), 0.044715
each_form = pytest.mark.parametrize("form", ["none", "tanh"])


def erf_product(x: Number, bar: Number) -> dict[str, Number]:
    """x / 2 (1 + erf(x c)), and Phi + x phi."""
    phi = (legal.erf(x * (1 / math.sqrt(2))) + 1.0) * 0.5
    density = legal.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return {"y": x * phi, "x_grad": bar * (phi + x * density)}


def erf_shares(x: Number, bar: Number) -> dict[str, Number]:
    """(x / 2) (1 + erf(x / sqrt 2)), and autograd of it."""
    z, half = x / math.sqrt(2), x * 0.5
    twice = legal.erf(z) + 1.0
    slope = legal.exp(-(z * z)) * (2 / math.sqrt(math.pi))
    return {"y": half * twice, "x_grad": bar * twice * 0.5 + (bar * half) * slope / math.sqrt(2)}


def tanh_product(x: Number, bar: Number) -> dict[str, Number]:
    """z = c (x + k x^3); Phi + x Phi' in closed form."""
    t = legal.tanh((x + x * x * x * K) * C)
    phi = (t + 1.0) * 0.5
    slope = (-(t * t) + 1.0) * ((x * x * (3 * K) + 1.0) * C)
    return {"y": x * phi, "x_grad": bar * (phi + x * 0.5 * slope)}


def tanh_shares(x: Number, bar: Number) -> dict[str, Number]:
    """z = x c (1 + k x^2), (1 - t) (1 + t), and shares."""
    square, half = x * x, x * 0.5
    t = legal.tanh(x * C * (square * K + 1.0))
    inner = (bar * half) * (-(t * t) + 1.0)
    return {"y": half * (t + 1.0), "x_grad": bar * 0.5 * (t + 1.0) + (inner * C + inner * (square * (C * 3 * K)))}


WAYS = {"none": (erf_product, erf_shares), "tanh": (tanh_product, tanh_shares)}


@each_form
@pytest.mark.parametrize("kind", activations.X_KINDS)
def test_every_legal_way_stays_inside(kind: str, form: str) -> None:
    tensors = drawn(kind)
    judged = primitive_bounds.Judged(gelu, tensors, {"approximate": form}, "float32")
    with np.errstate(all="ignore"):
        for rounding in roundings():
            for way in WAYS[form]:
                found = judged.ratios(way(*(rounding.given(tensors[name]) for name in ("x", "y_bar"))))
                assert max(found.values()) <= 1, (way.__name__, str(rounding), found)


def by_torch(tensors: Arrays, form: str, bug: str = "") -> dict[str, np.ndarray]:
    (x,) = primitive_bounds.leaves(tensors, "x")
    ways = {
        "": lambda: torch.nn.functional.gelu(x, approximate=form),
        "composed": lambda: composed(x, form, C),
        "the other form": lambda: torch.nn.functional.gelu(x, approximate="tanh" if form == "none" else "none"),
        "float32": lambda: torch.nn.functional.gelu(x.float(), approximate=form).to(x.dtype),
        "by a sigmoid": lambda: x * torch.sigmoid(1.702 * x),
        "a constant in float32": lambda: composed(x, form, float(np.float32(C))),
    }
    return primitive_bounds.answered({"y": ways[bug]()}, {"x": x}, tensors["y_bar"])


def composed(x: torch.Tensor, form: str, c: float) -> torch.Tensor:
    if form == "none":
        return x * 0.5 * (1 + torch.erf(x * (c * math.sqrt(math.pi) / 2)))
    return x * 0.5 * (1 + torch.tanh(c * (x + K * x**3)))


@each_form
@pytest.mark.parametrize("kind", activations.X_KINDS)
def test_torch_in_float64_stays_inside(kind: str, form: str) -> None:
    tensors = drawn(kind, "float64")
    for way in ("", "composed"):
        found = primitive_bounds.ratios(gelu, tensors, {"approximate": form}, "float64", by_torch(tensors, form, way))
        assert max(found.values()) <= 1, (way, found)


@each_form
def test_the_bound_is_tight(form: str) -> None:
    tensors = drawn("gaussian")
    judged = primitive_bounds.Judged(gelu, tensors, {"approximate": form}, "float32")
    given = [roundings()[0].given(tensors[name]) for name in ("x", "y_bar")]
    found = [judged.ratios(way(*given)) for way in WAYS[form]]
    assert min(min(ratios.values()) for ratios in found) > 0.05, found


@each_form
@pytest.mark.parametrize("kind", ["gaussian", "2 to 3", "turning", "subnormal"])
def test_just_past_the_bound_fails(kind: str, form: str) -> None:
    primitive_bounds.assert_edges(gelu, drawn(kind), {"approximate": form})


@each_form
@pytest.mark.parametrize("kind", ["2 to 3", "gaussian"])
@pytest.mark.parametrize("bug", ["the other form", "float32", "by a sigmoid", "a constant in float32"])
def test_planted_errors_fail_by_a_wide_factor(bug: str, kind: str, form: str) -> None:
    tensors = drawn(kind, "float64")
    found = primitive_bounds.ratios(gelu, tensors, {"approximate": form}, "float64", by_torch(tensors, form, bug))
    assert min(found.values()) > 1e4, found


@each_form
def test_the_other_form_fails_in_float32_too(form: str) -> None:
    tensors = drawn("2 to 3")
    found = primitive_bounds.ratios(gelu, tensors, {"approximate": form}, "float32", by_torch(tensors, form, "the other form"))
    assert min(found.values()) > 100, found


@each_form
def test_far_out_the_bound_is_about_nothing(form: str) -> None:
    """Where tanh and erf are +-1 themselves, no power of x multiplies their roundings."""
    x = np.array([-1e10, -100.0, 100.0, 1e10], dtype=np.float32)
    limits = primitive_bounds.Judged(gelu, {"x": x, "y_bar": np.ones_like(x)}, {"approximate": form}, "float32").limits
    assert limits["y"][:2].max() < 1e-25
    assert limits["x_grad"][:2].max() < 1e-25
    assert limits["x_grad"][2:].max() < 1e-6


@each_form
def test_a_tanh_or_erf_that_never_reaches_one_fails(form: str) -> None:
    """1 - 2^-24 in place of 1 is a unit in the last place, and yet gelu(-1e4) is not 0."""
    rounding: Rounding = roundings()[0]
    tensors = {"x": np.array([-1e4], dtype=np.float32), "y_bar": np.ones(1, dtype=np.float32)}
    judged = primitive_bounds.Judged(gelu, tensors, {"approximate": form}, "float32")
    x = rounding.given(tensors["x"])
    short = x * 0.5 * (x.map(lambda value: np.full_like(value, -(1 - 2.0**-24))) + 1.0)
    assert judged.ratios({"y": short, "x_grad": x * 0.0})["y"] > 1e20
