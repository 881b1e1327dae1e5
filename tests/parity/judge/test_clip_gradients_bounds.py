"""Clipping's bounds: every legal way to take the norm and to scale stays inside, planted errors do not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from parity.checks import optimizer
from parity.reference.clip_gradients import clip_gradients
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, roundings
from tests.parity.judge.legal_functions import joined


def drawn(kind: str = "gaussian", dtype: str = "float32", ratio: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {"a": optimizer.GRADIENTS[kind](rng, (3, 5)), "b": ratio * optimizer.GRADIENTS[kind](rng, (7,))}
    return primitive_bounds.in_dtype(values, dtype)


def of_all(parts: list[Number]) -> Number:
    flat = joined(parts)
    return flat.dot(flat).sqrt()


def of_norms(parts: list[Number]) -> Number:
    norms = joined([part.dot(part).sqrt() for part in parts])
    return norms.dot(norms).sqrt()


@pytest.mark.parametrize("max_norm", [0.3, 1e25])
@pytest.mark.parametrize("kind", optimizer.GRADIENTS)
@pytest.mark.parametrize("norm_of", [of_all, of_norms])
def test_every_legal_way_stays_inside(norm_of: Callable[[list[Number]], Number], kind: str, max_norm: float) -> None:
    tensors = drawn(kind)
    judged = primitive_bounds.Judged(clip_gradients, tensors, {"max_norm": max_norm}, "float32")
    for rounding in roundings():
        given = {name: rounding.given(array) for name, array in tensors.items()}
        norm = norm_of([part.map(lambda value: value.reshape(-1)) for part in given.values()])
        for ratio in (rounding.constant(max_norm) / (norm + 1e-6), (norm + 1e-6).reciprocal() * max_norm):
            scale = ratio.map(lambda value: np.minimum(value, 1.0))
            clipped = {f"{name}_clipped": part * scale for name, part in given.items()}
            found = judged.ratios({"norm": norm[0], **clipped})
            assert max(found.values()) <= 1, (str(rounding), found)


def by_torch(tensors: dict[str, np.ndarray], max_norm: float, bug: str = "") -> dict[str, np.ndarray]:
    leaves = [torch.nn.Parameter(torch.zeros(array.shape, dtype=torch.tensor(array).dtype)) for array in tensors.values()]
    for leaf, array in zip(leaves, tensors.values(), strict=True):
        leaf.grad = torch.tensor(array)
    if bug == "":
        norm = torch.nn.utils.clip_grad_norm_(leaves, max_norm)
    else:
        gradients = [torch.tensor(array) for array in tensors.values()]
        norm = torch.linalg.vector_norm(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        of_each = [torch.linalg.vector_norm(gradient) if bug == "per tensor" else norm for gradient in gradients]
        small = 0.0 if bug == "no 1e-6" else 1e-6
        for leaf, gradient, one in zip(leaves, gradients, of_each, strict=True):
            scale = max_norm / (one + small) if bug == "never more than 1 forgotten" else torch.clamp(max_norm / (one + small), max=1.0)
            leaf.grad = gradient * scale
        norm = norm.float().to(norm.dtype) if bug == "norm in float32" else norm
    return {"norm": norm.numpy(), **{f"{name}_clipped": leaf.grad.numpy() for name, leaf in zip(tensors, leaves, strict=True)}}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("max_norm", [0.3, 1.0, 1e25])
@pytest.mark.parametrize("kind", optimizer.GRADIENTS)
def test_torch_stays_inside(kind: str, max_norm: float, dtype: str) -> None:
    for ratio in optimizer.PAIRS:
        tensors = drawn(kind, dtype, ratio)
        found = primitive_bounds.ratios(clip_gradients, tensors, {"max_norm": max_norm}, dtype, by_torch(tensors, max_norm))
        assert max(found.values()) <= 1, found


def test_the_bound_is_tight() -> None:
    tensors = drawn()
    found = primitive_bounds.ratios(clip_gradients, tensors, {"max_norm": 0.3}, "float32", by_torch(tensors, 0.3))
    assert max(found.values()) > 0.05, found


def test_a_clip_that_does_not_bind_is_the_identity() -> None:
    tensors = drawn()
    judged = primitive_bounds.Judged(clip_gradients, tensors, {"max_norm": 100.0}, "float32")
    for name, array in tensors.items():
        np.testing.assert_array_equal(judged.expected[f"{name}_clipped"], array)
        assert not judged.limits[f"{name}_clipped"].any()
    found = judged.ratios(by_torch(tensors, 100.0, "never more than 1 forgotten"))
    assert min(found["a_clipped"], found["b_clipped"]) == np.inf


@pytest.mark.parametrize("bug", ["per tensor", "no 1e-6", "norm in float32"])
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn("gaussian", "float64")
    found = primitive_bounds.ratios(clip_gradients, tensors, {"max_norm": 0.3}, "float64", by_torch(tensors, 0.3, bug))
    assert (found["norm"] if bug == "norm in float32" else min(found["a_clipped"], found["b_clipped"])) > 1e4, found


def test_just_past_the_bound_fails() -> None:
    primitive_bounds.assert_edges(clip_gradients, drawn(), {"max_norm": 0.3})
