"""RMSNorm's bounds: every legal arrangement stays inside, planted errors do not.

Legend: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from parity.checks import norms
from parity.reference.rms_norm import rms_norm
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings


def drawn(kind: str, shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, *shape])
    return {"x": norms.ROWS[kind](rng, shape), "weight": rng.standard_normal(shape[1]), "y_bar": rng.standard_normal(shape)}


def closed(rounding: Rounding, tensors: Mapping[str, np.ndarray], eps: float) -> dict[str, Number]:
    """x r first, weight last; the gradient in closed form."""
    x_TD, weight_D, y_bar_TD = (rounding.given(tensors[name]) for name in ("x", "weight", "y_bar"))
    width = x_TD.value.shape[-1]
    rate_T1 = (x_TD.dot(x_TD) / float(width) + eps).sqrt().reciprocal()
    xhat_TD, g_TD = x_TD * rate_T1, y_bar_TD * weight_D
    x_grad_TD = (g_TD - xhat_TD * (g_TD.dot(xhat_TD) * (1 / width))) * rate_T1
    return {"y": xhat_TD * weight_D, "x_grad": x_grad_TD, "weight_grad": y_bar_TD.dot(xhat_TD, axis=0)[0]}


def weight_first(rounding: Rounding, tensors: Mapping[str, np.ndarray], eps: float) -> dict[str, Number]:
    """(x w) r, and autograd of it with r = m^(-1/2): r_bar, -r^3 / 2, two shares of the square."""
    x_TD, weight_D, y_bar_TD = (rounding.given(tensors[name]) for name in ("x", "weight", "y_bar"))
    width, weighted_TD = x_TD.value.shape[-1], x_TD * weight_D
    rate_T1 = ((x_TD * x_TD).sum() * (1 / width) + eps).sqrt().reciprocal()
    mean_bar_T1 = y_bar_TD.dot(weighted_TD) * -0.5 * (rate_T1 * rate_T1 * rate_T1)
    half_TD = mean_bar_T1 * (1 / width) * x_TD
    g_TD = (y_bar_TD * rate_T1) * weight_D
    weight_grad_D = ((y_bar_TD * rate_T1) * x_TD).sum(0)[0]
    return {"y": weighted_TD * rate_T1, "x_grad": half_TD + g_TD + half_TD, "weight_grad": weight_grad_D}


def division(rounding: Rounding, tensors: Mapping[str, np.ndarray], eps: float) -> dict[str, Number]:
    """x / s w, and autograd of it: shares through the division, the root and the square."""
    x_TD, weight_D, y_bar_TD = (rounding.given(tensors[name]) for name in ("x", "weight", "y_bar"))
    width = x_TD.value.shape[-1]
    root_T1 = (x_TD.dot(x_TD) / float(width) + eps).sqrt()
    xhat_TD, g_TD = x_TD / root_T1, y_bar_TD * weight_D
    root_bar_T1 = -((g_TD * (xhat_TD / root_T1)).sum())
    square_bar_T1 = root_bar_T1 / (root_T1 * 2.0) / float(width)
    x_grad_TD = g_TD / root_T1 + square_bar_T1 * (x_TD * 2.0)
    return {"y": xhat_TD * weight_D, "x_grad": x_grad_TD, "weight_grad": y_bar_TD.dot(xhat_TD, axis=0)[0]}


@pytest.mark.parametrize("kind", list(norms.ROWS))
def test_every_legal_way_stays_inside(kind: str) -> None:
    every_way(kind, (3, 12), 1e-5)


@pytest.mark.nightly
@pytest.mark.parametrize("shape", [(2, 4), (3, 24), (5, 96)])
@pytest.mark.parametrize("kind", list(norms.ROWS))
def test_every_legal_way_stays_inside_at_every_shape(kind: str, shape: tuple[int, int]) -> None:
    for seed, eps in enumerate(norms.EPS):
        every_way(kind, shape, eps, seed)


def every_way(kind: str, shape: tuple[int, int], eps: float, seed: int = 0) -> None:
    tensors = primitive_bounds.in_dtype(drawn(kind, shape, seed), "float32")
    judged = primitive_bounds.Judged(rms_norm, tensors, {"eps": eps}, "float32")
    for way in (closed, weight_first, division):
        for rounding in roundings(seed):
            found = judged.ratios(way(rounding, tensors, eps))
            assert max(found.values()) <= 1, (way.__name__, str(rounding), found)


def by_torch(tensors: Mapping[str, np.ndarray], eps: float, bug: str = "") -> dict[str, np.ndarray]:
    x, weight = primitive_bounds.leaves(tensors, "x", "weight")
    if bug == "kernel":
        y = torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)
    else:
        mean = (x * x).sum(-1, keepdim=True) / (x.shape[-1] - (bug == "n - 1"))
        root = torch.sqrt(mean) + eps if bug == "eps outside the root" else torch.sqrt(mean + eps)
        y = (x.float() if bug == "float32" else x) / root * weight
        y = x * root * weight if bug == "times the root" else y.to(x.dtype)
    return primitive_bounds.answered({"y": y}, {"x": x, "weight": weight}, tensors["y_bar"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bug", ["", "kernel"])
def test_torch_stays_inside_and_the_bound_is_tight(bug: str, dtype: str) -> None:
    for shape in ((3, 24), (5, 96)):
        tensors = primitive_bounds.in_dtype(drawn("gaussian", shape), dtype)
        found = primitive_bounds.ratios(rms_norm, tensors, {"eps": 1e-5}, dtype, by_torch(tensors, 1e-5, bug))
        floor = 0.005 if dtype == "float32" else 0  # in float64 the reference may round as torch does
        assert all(floor <= ratio <= 1 for ratio in found.values()), (shape, found)


@pytest.mark.parametrize("kind", ["small integers", "gaussian", "wide range", "spiky", "zero rows"])
def test_just_past_the_bound_fails(kind: str) -> None:
    primitive_bounds.assert_edges(rms_norm, primitive_bounds.in_dtype(drawn(kind, (3, 24)), "float32"), {"eps": 1e-5})


@pytest.mark.parametrize("bug", ["eps outside the root", "n - 1", "float32", "times the root"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn("far from mean square one", (3, 24))
    found = primitive_bounds.ratios(rms_norm, tensors, {"eps": 1e-5}, "float64", by_torch(tensors, 1e-5, bug))
    assert min(found.values()) > 1e4, found


def test_a_zero_row_has_an_answer_of_exactly_zero() -> None:
    tensors = primitive_bounds.in_dtype(drawn("zero rows", (3, 24)), "float32")
    judged = primitive_bounds.Judged(rms_norm, tensors, {"eps": 1e-5}, "float32")
    assert not judged.expected["y"][0].any()
    assert not judged.limits["y"][0].any()
    assert np.all(np.abs(judged.expected["x_grad"][0]) > 0)
