"""LayerNorm's bounds: every legal arrangement stays inside, planted errors do not.

Legend: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from parity.checks import norms
from parity.reference.layer_norm import layer_norm
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings

Tensors = Mapping[str, np.ndarray]


def drawn(kind: str, shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, *shape])
    return {
        "x": norms.ROWS[kind](rng, shape),
        "weight": rng.standard_normal(shape[1]),
        "bias": rng.standard_normal(shape[1]),
        "y_bar": rng.standard_normal(shape),
    }


def mean(x_TD: Number) -> Number:
    return x_TD.sum() * (1 / x_TD.value.shape[-1])


def given(rounding: Rounding, tensors: Tensors) -> tuple[Number, Number, Number, Number]:
    x_TD, weight_D, bias_D, y_bar_TD = (rounding.given(tensors[name]) for name in ("x", "weight", "bias", "y_bar"))
    return x_TD, weight_D, bias_D, y_bar_TD


def closed(rounding: Rounding, tensors: Tensors, eps: float) -> dict[str, Number]:
    """Two passes; the gradient in closed form."""
    x_TD, weight_D, bias_D, y_bar_TD = given(rounding, tensors)
    d_TD = x_TD - mean(x_TD)
    rate_T1 = (mean(d_TD * d_TD) + eps).sqrt().reciprocal()
    xhat_TD, g_TD = d_TD * rate_T1, y_bar_TD * weight_D
    x_grad_TD = (g_TD - mean(g_TD) - xhat_TD * mean(g_TD * xhat_TD)) * rate_T1
    return answer(xhat_TD * weight_D + bias_D, x_grad_TD, y_bar_TD, xhat_TD)


def together(rounding: Rounding, tensors: Tensors, eps: float) -> dict[str, Number]:
    """d's shares added up, then the mean's; d / sqrt."""
    x_TD, weight_D, bias_D, y_bar_TD = given(rounding, tensors)
    width = float(x_TD.value.shape[-1])
    d_TD = x_TD - x_TD.sum() / width
    root_T1 = (d_TD.dot(d_TD) / width + eps).sqrt()
    xhat_TD, g_TD = d_TD / root_T1, y_bar_TD * weight_D
    square_bar_T1 = -((g_TD * xhat_TD / root_T1).sum()) / (root_T1 * 2.0) / width
    d_bar_TD = square_bar_T1 * (d_TD * 2.0) + g_TD / root_T1
    return answer(xhat_TD * weight_D + bias_D, d_bar_TD - d_bar_TD.sum() / width, y_bar_TD, xhat_TD)


def apart(rounding: Rounding, tensors: Tensors, eps: float) -> dict[str, Number]:
    """The variance takes a mean of its own, as tinygrad's var does; weight first."""
    x_TD, weight_D, bias_D, y_bar_TD = given(rounding, tensors)
    d_TD = x_TD - mean(x_TD)
    rate_T1 = (mean(d_TD * d_TD) + eps).sqrt().reciprocal()
    g_TD = (y_bar_TD * rate_T1) * weight_D
    half_TD = (y_bar_TD * weight_D).dot(d_TD) * (rate_T1 * rate_T1 * rate_T1 * -0.5) * (1 / d_TD.value.shape[-1]) * d_TD
    both_TD = half_TD + half_TD
    x_grad_TD = (g_TD - mean(g_TD)) + (both_TD - mean(both_TD))
    return answer(bias_D + (d_TD * weight_D) * rate_T1, x_grad_TD, y_bar_TD, d_TD * rate_T1)


def answer(y_TD: Number, x_grad_TD: Number, y_bar_TD: Number, xhat_TD: Number) -> dict[str, Number]:
    sums = {"weight_grad": y_bar_TD.dot(xhat_TD, axis=0)[0], "bias_grad": y_bar_TD.sum(0)[0]}
    return {"y": y_TD, "x_grad": x_grad_TD, **sums}


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
    judged = primitive_bounds.Judged(layer_norm, tensors, {"eps": eps}, "float32")
    for way in (closed, together, apart):
        for rounding in roundings(seed):
            found = judged.ratios(way(rounding, tensors, eps))
            assert max(found.values()) <= 1, (way.__name__, str(rounding), found)


def by_torch(tensors: Tensors, eps: float, bug: str = "") -> dict[str, np.ndarray]:
    x, weight, bias = primitive_bounds.leaves(tensors, "x", "weight", "bias")
    if bug == "kernel":
        y = torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
    else:
        d = x - x.mean(-1, keepdim=True)
        variance = (d * d).sum(-1, keepdim=True) / (x.shape[-1] - (bug == "n - 1"))
        if bug == "one pass":
            variance = (x * x).mean(-1, keepdim=True) - x.mean(-1, keepdim=True) ** 2
        root = torch.sqrt(variance) + eps if bug == "eps outside the root" else torch.sqrt(variance + eps)
        xhat = d.float() / root.float() if bug == "float32" else d / root
        y = xhat.to(x.dtype) * weight + (0 * bias if bug == "no bias" else bias)
    return primitive_bounds.answered({"y": y}, {"x": x, "weight": weight, "bias": bias}, tensors["y_bar"])


@pytest.mark.parametrize("kind", ["gaussian", "offset", "spiky", "far from mean square one"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bug", ["", "kernel"])
def test_torch_stays_inside(bug: str, dtype: str, kind: str) -> None:
    """torch's kernel takes Welford's update for the variance."""
    for shape in ((3, 24), (5, 96)):
        tensors = primitive_bounds.in_dtype(drawn(kind, shape), dtype)
        found = primitive_bounds.ratios(layer_norm, tensors, {"eps": 1e-5}, dtype, by_torch(tensors, 1e-5, bug))
        floor = 0.001 if dtype == "float32" else 0  # in float64 the reference may round as torch does
        assert all(floor <= ratio <= 1 for ratio in found.values()), (shape, found)


@pytest.mark.parametrize("kind", ["small integers", "gaussian", "wide range", "spiky", "zero rows"])
def test_just_past_the_bound_fails(kind: str) -> None:
    primitive_bounds.assert_edges(layer_norm, primitive_bounds.in_dtype(drawn(kind, (3, 24)), "float32"), {"eps": 1e-5})


@pytest.mark.parametrize("bug", ["eps outside the root", "n - 1", "float32", "no bias"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn("far from mean square one", (3, 24))
    found = primitive_bounds.ratios(layer_norm, tensors, {"eps": 1e-5}, "float64", by_torch(tensors, 1e-5, bug))
    wrong = ["bias_grad"] if bug == "no bias" else ["y", "x_grad", "weight_grad"]
    assert min(found[name] for name in wrong) > 1e4, found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_variance_in_one_pass_fails_where_the_mean_is_large(dtype: str) -> None:
    tensors = drawn("gaussian", (3, 24))
    tensors["x"] += 3000 if dtype == "float32" else 1e6
    tensors = primitive_bounds.in_dtype(tensors, dtype)
    right, wrong = (
        primitive_bounds.ratios(layer_norm, tensors, {"eps": 1e-5}, dtype, by_torch(tensors, 1e-5, bug)) for bug in ("", "one pass")
    )
    assert max(right.values()) < 1 < wrong["y"], (right, wrong)


def test_a_constant_row_has_a_bound_whatever_its_size() -> None:
    """What its mean errs by may exceed eps; the rate can't exceed 1 / sqrt(eps) all the same."""
    x = np.full((2, 24), 1e9 / 3, dtype=np.float32)
    tensors = {**primitive_bounds.in_dtype(drawn("gaussian", (2, 24)), "float32"), "x": x}
    judged = primitive_bounds.Judged(layer_norm, tensors, {"eps": 1e-6}, "float32")
    for rounding in roundings():
        assert max(judged.ratios(closed(rounding, tensors, 1e-6)).values()) <= 1
