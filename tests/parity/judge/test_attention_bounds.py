"""Attention's bounds: every legal arrangement stays inside, planted errors do not.

Legend: B sequences, T tokens, S tokens that are looked at (= T), H heads, K key heads, E head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from parity.checks import attention as check
from parity.reference.attention import attention
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings

Tensors = Mapping[str, np.ndarray]
SHAPE, WINDOW = check.Shape(2, 4, 2, 5, 6, (None,)), 3
PADDED, PADDED_WINDOW = check.PADDED, 4


def drawn(kind: str, padding: str = "left", shape: check.Shape = SHAPE, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([seed, shape.length])
    values = {name: (check.SCORED[kind] if name in "qk" else rng.normal)(*(rng, size) if name in "qk" else (0, 1, size))
              for name, size in shape.sizes().items()}  # fmt: skip
    return {**values, "valid": check.valid_tokens(padding, rng, shape.batch, shape.length)}


def seen_by_hand(tensors: Tensors, window: int | None) -> np.ndarray:
    """[B, 1, T, S], one pair of tokens at a time."""
    batch, _, length, _ = tensors["q"].shape
    seen = np.zeros((batch, 1, length, length), dtype=bool)
    for sequence, t, s in np.ndindex(batch, length, length):
        near = window is None or t - s < window
        seen[sequence, 0, t, s] = s <= t and near and bool(tensors["valid"][sequence, s])
    return seen


def repeated(rounding: Rounding, tensors: Tensors, scale: str) -> dict[str, Number]:
    """Key and value heads repeated, their gradients added up; scores scaled, or q, or q and k by the fourth root."""
    q, k, v, bar = (rounding.given(tensors[name]) for name in ("q", "k", "v", "context_bar"))
    group = q.value.shape[1] // k.value.shape[1]
    k, v = (one.map(lambda array: np.repeat(array, group, axis=1)) for one in (k, v))
    seen = seen_by_hand(tensors, WINDOW)
    factor = 1 / math.sqrt(SHAPE.head_dim)
    left, right, last = {
        "scores": (1.0, 1.0, factor), "q": (factor, 1.0, 1.0), "both": (math.sqrt(factor), math.sqrt(factor), 1.0),
    }[scale]  # fmt: skip
    q_scaled, k_scaled = q * left, k * right
    scores = q_scaled.matmul(k_scaled.turned()) * last
    top = Number(np.where(seen, scores.value, -np.inf).max(-1, keepdims=True), rounding).map(lambda one: np.where(np.isfinite(one), one, 0))
    e = (scores.map(lambda one: np.where(seen, one, 0)) - top.map(lambda one: one * seen)).exp().map(lambda one: one * seen)
    total = e.sum().map(lambda one: np.where(one > 0, one, 1.0))
    p = e / total
    p_bar = bar.matmul(v.turned())
    scores_bar = p * (p_bar - p_bar.dot(p)) * last
    key_gradient = scores_bar.turned().matmul(q_scaled) * right
    gradients = {"k_grad": key_gradient, "v_grad": p.turned().matmul(bar)}
    return {"context": p.matmul(v), "q_grad": scores_bar.matmul(k_scaled) * left} | {
        name: folded(one, group) for name, one in gradients.items()
    }


def folded(gradient: Number, group: int) -> Number:
    """The sum over the heads of a group."""
    batch, heads, length, head_dim = gradient.value.shape
    return gradient.map(lambda one: one.reshape(batch, heads // group, group, length, head_dim)).sum(2)[:, :, 0]


def at_once(rounding: Rounding, tensors: Tensors) -> dict[str, Number]:
    """Without weights: sum(e v) / S, and sum over the head of context_bar context in the place of sum(p_bar p), as in FlashAttention."""
    q, k, v, bar = (rounding.given(tensors[name]) for name in ("q", "k", "v", "context_bar"))
    group = q.value.shape[1] // k.value.shape[1]
    k, v = (one.map(lambda array: np.repeat(array, group, axis=1)) for one in (k, v))
    seen, root = seen_by_hand(tensors, WINDOW), math.sqrt(SHAPE.head_dim)
    scores = q.matmul(k.turned()) / root
    top = Number(np.where(seen, scores.value, -np.inf).max(-1, keepdims=True), rounding).map(lambda one: np.where(np.isfinite(one), one, 0))
    e = (scores.map(lambda one: np.where(seen, one, 0)) - top.map(lambda one: one * seen)).exp().map(lambda one: one * seen)
    total = e.sum().map(lambda one: np.where(one > 0, one, 1.0))
    context, p = e.matmul(v) / total, e * total.reciprocal()
    scores_bar = p * (bar.matmul(v.turned()) - bar.dot(context)) / root
    gradients = {"k_grad": scores_bar.turned().matmul(q), "v_grad": p.turned().matmul(bar)}
    return {"context": context, "q_grad": scores_bar.matmul(k)} | {name: folded(one, group) for name, one in gradients.items()}


@pytest.mark.parametrize("kind", list(check.SCORED))
def test_every_legal_way_stays_inside(kind: str) -> None:
    every_way(kind, "left")


@pytest.mark.nightly
@pytest.mark.parametrize("padding", ["right", "whole", "holes"])
@pytest.mark.parametrize("kind", list(check.SCORED))
def test_every_legal_way_stays_inside_with_any_padding(kind: str, padding: str) -> None:
    for seed in range(3):
        every_way(kind, padding, seed)


def every_way(kind: str, padding: str, seed: int = 0) -> None:
    tensors = primitive_bounds.in_dtype(drawn(kind, padding, seed=seed), "float32")
    judged = primitive_bounds.Judged(attention, tensors, {"window": WINDOW}, "float32")
    for rounding in roundings(seed):
        answers = {scale: repeated(rounding, tensors, scale) for scale in ("scores", "q", "both")}
        for name, got in {**answers, "at once": at_once(rounding, tensors)}.items():
            found = judged.ratios(got)
            assert max(found.values()) <= 1, (name, str(rounding), found)


def by_torch(tensors: Tensors, window: int | None, bug: str = "") -> dict[str, np.ndarray]:
    q, k, v = primitive_bounds.leaves(tensors, "q", "k", "v")
    group, length = q.shape[1] // k.shape[1], q.shape[2]
    keys, values = (one.repeat(1, group, 1, 1) if bug == "tiled heads" else one.repeat_interleave(group, 1) for one in (k, v))
    one_more = {"window off by one": 1, "no window": length}.get(bug, 0)
    looked_at = {**tensors, "valid": np.ones_like(tensors["valid"])} if bug == "no padding" else tensors
    seen = torch.tensor(seen_by_hand(looked_at, None if window is None else window + one_more))
    if bug == "the future":
        seen = seen | seen.transpose(-1, -2)
    if bug == "kernel":
        context = torch.nn.functional.scaled_dot_product_attention(q, keys, values, seen)
        return primitive_bounds.answered({"context": context}, {"q": q, "k": k, "v": v}, tensors["context_bar"])
    scores = q @ keys.transpose(-1, -2) / math.sqrt(q.shape[-1]) * (1 + 1e-7 * (bug == "scale"))
    scores = scores.masked_fill(~seen, -1e30).float() if bug == "float32 softmax" else scores.masked_fill(~seen, -1e30)
    p = torch.softmax(scores, -1).to(q.dtype) * seen
    return primitive_bounds.answered({"context": p @ values}, {"q": q, "k": k, "v": v}, tensors["context_bar"])


@pytest.mark.parametrize("kind", list(check.SCORED))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_stays_inside(dtype: str, kind: str) -> None:
    tensors = primitive_bounds.in_dtype(drawn(kind, "left", PADDED), dtype)
    found = primitive_bounds.ratios(attention, tensors, {"window": PADDED_WINDOW}, dtype, by_torch(tensors, PADDED_WINDOW))
    assert max(found.values()) <= 1, found
    if (kind, dtype) == ("gaussian", "float32"):
        assert min(found.values()) > 0.005, found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torchs_kernel_stays_inside(dtype: str) -> None:
    """scaled_dot_product_attention, which scales both operands; no row is wholly masked."""
    tensors = primitive_bounds.in_dtype(drawn("gaussian", "right", PADDED), dtype)
    tensors["valid"][:] = True
    found = primitive_bounds.ratios(attention, tensors, {"window": PADDED_WINDOW}, dtype, by_torch(tensors, PADDED_WINDOW, "kernel"))
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("kind", ["small integers", "gaussian", "spread"])
def test_just_past_the_bound_fails(kind: str) -> None:
    tensors = primitive_bounds.in_dtype(drawn(kind), "float32")
    primitive_bounds.assert_edges(attention, tensors, {"window": WINDOW})


BUGS = ["scale", "float32 softmax", "window off by one", "no window", "tiled heads", "no padding", "the future"]


@pytest.mark.parametrize("bug", BUGS)
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn("gaussian", "left", PADDED)
    found = primitive_bounds.ratios(attention, tensors, {"window": PADDED_WINDOW}, "float64", by_torch(tensors, PADDED_WINDOW, bug))
    assert min(found.values()) > 1e4, found


def test_a_wholly_masked_row_is_exactly_zero_with_no_gradient() -> None:
    tensors = drawn("gaussian", "whole")
    judged = primitive_bounds.Judged(attention, tensors, {"window": WINDOW}, "float64")
    masked = ~seen_by_hand(tensors, WINDOW).any(-1)[:, 0]
    assert masked[0].all()
    assert not masked[1].all()
    for name in ("context", "q_grad"):
        for of in (judged.expected[name], judged.limits[name]):
            rows = of.swapaxes(1, 2)[masked]
            assert rows.size
            assert not rows.any(), name
    for name in ("k_grad", "v_grad"):
        assert not judged.expected[name][0].any()
        assert not judged.limits[name][0].any()
