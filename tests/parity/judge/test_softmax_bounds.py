"""Softmax's bounds: every legal arrangement stays inside, planted errors do not.

Legend: T rows, N entries.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from parity.checks import softmax as check
from parity.reference.softmax import softmax
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings

Tensors = Mapping[str, np.ndarray]
COTANGENTS = (1.0, 1e6)


def drawn(kind: str, shape: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, *shape])
    return {"x": check.LOGITS[kind](rng, shape), "y_bar": rng.standard_normal(shape) * 10.0 ** rng.uniform(-3, 3, shape)}


def exponentials(rounding: Rounding, tensors: Tensors) -> tuple[Number, Number]:
    """e and y_bar; a hidden entry's e is 0."""
    hidden_TN = np.isneginf(tensors["x"])
    x_TN = rounding.given(np.where(hidden_TN, 0, tensors["x"]))
    top_T1 = Number(np.where(hidden_TN, -np.inf, x_TN.value).max(-1, keepdims=True), rounding)
    return (x_TN - top_T1).exp().map(lambda e: np.where(hidden_TN, 0.0, e)), rounding.given(tensors["y_bar"])


def quotient(rounding: Rounding, tensors: Tensors) -> dict[str, Number]:
    """e / S; the gradient's common factor last."""
    e_TN, y_bar_TN = exponentials(rounding, tensors)
    y_TN = e_TN / e_TN.sum()
    return {"y": y_TN, "x_grad": (y_bar_TN - y_bar_TN.dot(y_TN)) * y_TN}


def two_products(rounding: Rounding, tensors: Tensors) -> dict[str, Number]:
    """e times 1 / S; y_bar y less y sum(y_bar y)."""
    e_TN, y_bar_TN = exponentials(rounding, tensors)
    y_TN = e_TN * e_TN.sum().reciprocal()
    share_TN = y_bar_TN * y_TN
    return {"y": y_TN, "x_grad": share_TN - y_TN * share_TN.sum()}


def shares(rounding: Rounding, tensors: Tensors) -> dict[str, Number]:
    """Autograd of e times 1 / S: shares through the product and the reciprocal."""
    e_TN, y_bar_TN = exponentials(rounding, tensors)
    rate_T1 = e_TN.sum().reciprocal()
    total_bar_T1 = -(y_bar_TN.dot(e_TN) * (rate_T1 * rate_T1))
    return {"y": e_TN * rate_T1, "x_grad": (y_bar_TN * rate_T1 + total_bar_T1) * e_TN}


@pytest.mark.parametrize("kind", list(check.LOGITS))
def test_every_legal_way_stays_inside(kind: str) -> None:
    every_way(kind, (4, 11))


@pytest.mark.nightly
@pytest.mark.parametrize("shape", check.SHAPES)
@pytest.mark.parametrize("kind", list(check.LOGITS))
def test_every_legal_way_stays_inside_at_every_shape(kind: str, shape: tuple[int, int]) -> None:
    for seed in range(3):
        every_way(kind, shape, seed)


def every_way(kind: str, shape: tuple[int, int], seed: int = 0) -> None:
    tensors = primitive_bounds.in_dtype(drawn(kind, shape, seed), "float32")
    judged = primitive_bounds.Judged(softmax, tensors, {}, "float32")
    for way in (quotient, two_products, shares):
        for rounding in roundings(seed):
            found = judged.ratios(way(rounding, tensors))
            assert max(found.values()) <= 1, (way.__name__, str(rounding), found)


def by_torch(tensors: Tensors, bug: str = "") -> dict[str, np.ndarray]:
    (x,) = primitive_bounds.leaves(tensors, "x")
    if bug == "scale":
        y = torch.softmax(x * (1 + 1e-7), -1)
    elif bug == "one more":
        e = torch.exp(x - x.detach().amax(-1, keepdim=True))
        y = e / (1e-9 + e.sum(-1, keepdim=True))
    else:
        y = torch.softmax(x.float() if bug == "float32" else x, -1).to(x.dtype)
    return primitive_bounds.answered({"y": y}, {"x": x}, tensors["y_bar"])


@pytest.mark.parametrize("kind", list(check.LOGITS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_stays_inside(dtype: str, kind: str) -> None:
    tensors = primitive_bounds.in_dtype(drawn(kind, (3, 64)), dtype)
    found = primitive_bounds.ratios(softmax, tensors, {}, dtype, by_torch(tensors))
    assert max(found.values()) <= 1, found
    if (kind, dtype) == ("gaussian", "float32"):
        assert min(found.values()) > 0.01, found


@pytest.mark.parametrize("kind", ["small integers", "gaussian", "hidden entries", "huge"])
def test_just_past_the_bound_fails(kind: str) -> None:
    primitive_bounds.assert_edges(softmax, primitive_bounds.in_dtype(drawn(kind, (4, 11)), "float32"), {})


@pytest.mark.parametrize("bug", ["float32", "scale", "one more"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    """A softmax in float32, logits off by 1e-7, 1e-9 in the denominator against division by zero."""
    tensors = drawn("gaussian", (4, 17))
    found = primitive_bounds.ratios(softmax, tensors, {}, "float64", by_torch(tensors, bug))
    assert min(found.values()) > 1e4, found


@pytest.mark.parametrize("tensor", ["y", "x_grad"])
def test_a_hidden_entry_is_exactly_zero(tensor: str) -> None:
    tensors = drawn("hidden entries", (4, 17))
    judged = primitive_bounds.Judged(softmax, tensors, {}, "float64")
    hidden = np.isneginf(tensors["x"])
    assert not judged.expected[tensor][hidden].any()
    assert not judged.limits[tensor][hidden].any()
    right = {name: value.copy() for name, value in judged.expected.items()}
    right[tensor][hidden] = 1e-300
    assert judged.ratios(right)[tensor] == np.inf
