"""AdamW's bounds: every legal arrangement stays inside, planted errors do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from parity.checks import optimizer
from parity.reference.adamw import adamw_step
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings

ATTRS = {"lr": 0.5, "beta1": 0.75, "beta2": 0.95, "eps": 1e-2, "weight_decay": 0.1}
USUAL = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
Attrs = Mapping[str, Any]


def drawn(kind: str = "gaussian", dtype: str = "float32", *, step: int = 3, moments: float = 1.0, length: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([step, length])
    gradient, older = (optimizer.SMALL_AND_LARGE[kind](rng, (length,)) for _ in range(2))
    values = {
        "weight": rng.standard_normal(length),
        "gradient": gradient,
        "m": moments * older,
        "v": moments * older * older * rng.uniform(0.5, 2, length),
    }
    return {**primitive_bounds.in_dtype(values, dtype), "step": np.asarray(step)}


class Given:
    """The inputs as a device has them, and the host's numbers."""

    def __init__(self, rounding: Rounding, tensors: Mapping[str, np.ndarray], attrs: Attrs) -> None:
        self.weight, self.g, self.m, self.v = (rounding.given(tensors[name]) for name in ("weight", "gradient", "m", "v"))
        self.lr, self.b1, self.b2, self.eps = (attrs[name] for name in ("lr", "beta1", "beta2", "eps"))
        self.decay, self.n = attrs["lr"] * attrs["weight_decay"], int(tensors["step"]) + 1
        self.c1, self.c2 = 1 - self.b1**self.n, 1 - self.b2**self.n

    def answer(self, weight: Number, m: Number, v: Number) -> dict[str, Any]:
        return {"weight_next": weight, "m_next": m, "v_next": v, "step_next": self.n}

    def decayed(self) -> Number:
        return self.weight * (1 - self.decay)


def as_written(one: Given) -> dict[str, Any]:
    """mhat, vhat, and their quotient times lr."""
    m = one.m * one.b1 + one.g * (1 - one.b1)
    v = one.v * one.b2 + one.g * one.g * (1 - one.b2)
    root = (v / one.c2).sqrt() + one.eps
    return one.answer(one.decayed() - (m / one.c1) / root * one.lr, m, v)


def as_torch(one: Given) -> dict[str, Any]:
    """lerp, addcmul, the root apart from its correction, addcdiv."""
    m = one.m + (one.g - one.m) * (1 - one.b1)
    v = one.v * one.b2 + (one.g * (1 - one.b2)) * one.g
    root = v.sqrt() / one.c2**0.5 + one.eps
    return one.answer(one.decayed() - m / root * (one.lr / one.c1), m, v)


def by_reciprocals(one: Given) -> dict[str, Any]:
    """Both averages as lerp, decay subtracted, divisions as products."""
    m = one.m + (one.g - one.m) * (1 - one.b1)
    v = one.v + (one.g * one.g - one.v) * (1 - one.b2)
    root = v.sqrt() * (1 / one.c2**0.5) + one.eps
    return one.answer(one.weight - one.weight * one.decay - m * (one.lr / one.c1) * root.reciprocal(), m, v)


@pytest.mark.parametrize("attrs", [ATTRS, USUAL], ids=["large", "usual"])
@pytest.mark.parametrize("kind", optimizer.SMALL_AND_LARGE)
def test_every_legal_way_stays_inside(kind: str, attrs: Attrs) -> None:
    for step, moments in ((0, 0.0), (1000, 1.0)):
        tensors = drawn(kind, step=step, moments=moments)
        judged = primitive_bounds.Judged(adamw_step, tensors, attrs, "float32")
        for rounding in roundings():
            for way in (as_written, as_torch, by_reciprocals):
                found = judged.ratios(way(Given(rounding, tensors, attrs)))
                assert max(found.values()) <= 1, (way.__name__, str(rounding), step, moments, found)


def by_torch(tensors: Mapping[str, np.ndarray], attrs: Attrs) -> dict[str, np.ndarray]:
    parameter = torch.nn.Parameter(torch.tensor(tensors["weight"]))
    parameter.grad = torch.tensor(tensors["gradient"])
    adam = torch.optim.AdamW(
        [parameter], lr=attrs["lr"], betas=(attrs["beta1"], attrs["beta2"]), eps=attrs["eps"], weight_decay=attrs["weight_decay"]
    )
    state = {"exp_avg": torch.tensor(tensors["m"]), "exp_avg_sq": torch.tensor(tensors["v"])}
    adam.state[parameter] = {"step": torch.tensor(float(tensors["step"])), **state}
    adam.step()
    return {
        "weight_next": parameter.detach().numpy(),
        "m_next": adam.state[parameter]["exp_avg"].numpy(),
        "v_next": adam.state[parameter]["exp_avg_sq"].numpy(),
        "step_next": adam.state[parameter]["step"].numpy(),
    }


@pytest.mark.parametrize("attrs", [ATTRS, USUAL], ids=["large", "usual"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", optimizer.SMALL_AND_LARGE)
def test_torch_stays_inside(kind: str, dtype: str, attrs: Attrs) -> None:
    for step in (0, 1, 1000):
        tensors = drawn(kind, dtype, step=step)
        found = primitive_bounds.ratios(adamw_step, tensors, attrs, dtype, by_torch(tensors, attrs))
        assert max(found.values()) <= 1, (step, found)
        if (kind, dtype) == ("gaussian", "float32"):
            assert found["weight_next"] > 0.02, "the bound is tight"


BUGS = (
    "eps inside the root", "eps before the correction", "n + 1", "no correction", "L2", "no decay", "decay times lr forgotten",
    "beta1 for beta2", "m in float32", "float32",
)  # fmt: skip


def wrong(tensors: Mapping[str, np.ndarray], attrs: Attrs, bug: str) -> dict[str, np.ndarray]:
    """AdamW in float64 with one mistake."""
    weight, gradient, m, v = (tensors[name] for name in ("weight", "gradient", "m", "v"))
    lr, b1, b2, eps, decay = (attrs[name] for name in ("lr", "beta1", "beta2", "eps", "weight_decay"))
    n = int(tensors["step"]) + 1
    if bug == "L2":
        gradient = gradient + decay * weight
    if bug == "beta1 for beta2":
        b2 = b1
    m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
    if bug == "m in float32":
        m = m.astype(np.float32).astype(np.float64)
    power = n + (bug == "n + 1")
    c1, c2 = (1.0, 1.0) if bug == "no correction" else (1 - b1**power, 1 - b2**power)
    root = np.sqrt(v / c2 + eps) if bug == "eps inside the root" else np.sqrt(v / c2) + eps
    root = (np.sqrt(v) + eps) / np.sqrt(c2) if bug == "eps before the correction" else root
    kept = {"L2": 1.0, "no decay": 1.0, "decay times lr forgotten": 1 - decay}.get(bug, 1 - lr * decay)
    following = weight * kept - lr * (m / c1) / root
    following = following.astype(np.float32).astype(np.float64) if bug == "float32" else following
    return {"weight_next": following, "m_next": m, "v_next": v, "step_next": np.asarray(float(n))}


def test_what_is_spoilt_is_right_without_a_bug() -> None:
    tensors = drawn(dtype="float64")
    assert max(primitive_bounds.ratios(adamw_step, tensors, ATTRS, "float64", wrong(tensors, ATTRS, "")).values()) <= 1


@pytest.mark.parametrize("bug", BUGS)
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn(dtype="float64")
    found = primitive_bounds.ratios(adamw_step, tensors, ATTRS, "float64", wrong(tensors, ATTRS, bug))
    assert found["weight_next"] > 1e4, found
    moments = {"L2": {"m_next", "v_next"}, "beta1 for beta2": {"v_next"}, "m in float32": {"m_next"}}.get(bug, set())
    assert {name for name in ("m_next", "v_next") if found[name] > 1e4} == moments


@pytest.mark.parametrize("bug", ["eps inside the root", "eps before the correction"])
def test_eps_is_seen_at_its_usual_size_where_gradients_are_as_small(bug: str) -> None:
    attrs = {**USUAL, "lr": 0.5}
    tensors = drawn("as small as eps", step=0, moments=0.0)
    found = primitive_bounds.ratios(adamw_step, tensors, attrs, "float32", wrong({**tensors}, attrs, bug))
    assert found["weight_next"] > 1e4, found


def test_nothing_to_do_leaves_the_weight_alone() -> None:
    tensors = drawn("zero", moments=0.0)
    judged = primitive_bounds.Judged(adamw_step, tensors, USUAL, "float32")
    np.testing.assert_array_equal(judged.expected["weight_next"], tensors["weight"])
    assert not any(limit.any() for limit in judged.limits.values())


def test_decay_alone_shrinks_the_weight_by_lr_times_decay() -> None:
    tensors = drawn("zero", moments=0.0)
    judged = primitive_bounds.Judged(adamw_step, tensors, ATTRS, "float32")
    shrunk = 0.95 * tensors["weight"].astype(np.float64)
    assert np.all(np.abs(judged.expected["weight_next"] - shrunk) <= 2 * np.spacing(np.abs(shrunk)))
    assert not judged.limits["m_next"].any()


def test_moments_of_integers_are_exact() -> None:
    values = {name: np.array([3.0, -5.0, 7.0]) for name in ("weight", "gradient", "m")}
    tensors = primitive_bounds.in_dtype({**values, "v": np.array([9.0, 1.0, 25.0])}, "float32")
    attrs = {**ATTRS, "beta1": 0.5, "beta2": 0.5}
    judged = primitive_bounds.Judged(optimizer.exact_moments, {**tensors, "step": np.asarray(0)}, attrs, "float32")
    np.testing.assert_array_equal(judged.expected["v_next"], [9.0, 13.0, 37.0])
    assert not judged.limits["m_next"].any()
    assert not judged.limits["v_next"].any()
    assert judged.limits["weight_next"].all()


def test_just_past_the_bound_fails() -> None:
    judged = primitive_bounds.Judged(adamw_step, drawn(), ATTRS, "float32")
    for name in ("weight_next", "m_next", "v_next"):
        for factor, inside in ((0.999, True), (1.001, False)):
            moved = {**judged.expected, name: judged.expected[name] + factor * judged.limits[name]}
            assert (judged.ratios(moved)[name] <= 1) is inside
    assert judged.ratios({**judged.expected, "step_next": np.asarray(5.0)})["step_next"] == np.inf
