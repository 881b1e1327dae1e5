"""The reference of AdamW against torch.optim.AdamW over several steps, and against 40 digits."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
import torch

from parity.reference.adamw import adamw_step
from parity.reference.running_error import REFERENCE, Computed

ATTRS = {"lr": 0.3, "beta1": 0.8, "beta2": 0.97, "eps": 1e-2, "weight_decay": 0.2}
RNG = np.random.default_rng(11)


def first(length: int = 6) -> dict[str, np.ndarray]:
    zeros = {"m": np.zeros(length), "v": np.zeros(length), "step": np.asarray(0)}
    return {"weight": RNG.standard_normal(length), "gradient": RNG.standard_normal(length), **zeros}


def near(got: Computed, other: np.ndarray) -> bool:
    """Both are in float64 and right, so each lies within the error that the reference derives for itself."""
    return bool(np.all(np.abs(got.value - other) <= 2 * got.error))


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_torch_over_five_steps(eps: float, decay: float) -> None:
    attrs, tensors = {**ATTRS, "eps": eps, "weight_decay": decay}, first()
    parameter = torch.nn.Parameter(torch.tensor(tensors["weight"]))
    adam = torch.optim.AdamW([parameter], lr=0.3, betas=(0.8, 0.97), eps=eps, weight_decay=decay)
    for step in range(5):
        tensors["gradient"] = RNG.standard_normal(6)
        parameter.grad = torch.tensor(tensors["gradient"])
        adam.step()
        got = adamw_step(tensors, attrs, REFERENCE)
        theirs = {"weight": parameter.detach(), "m": adam.state[parameter]["exp_avg"], "v": adam.state[parameter]["exp_avg_sq"]}
        assert all(near(got[f"{name}_next"], tensor.numpy()) for name, tensor in theirs.items())
        assert got["step_next"].value == step + 1
        assert np.all(got["weight_next"].value != tensors["weight"])
        tensors = {**tensors, **{name: tensor.numpy().copy() for name, tensor in theirs.items()}, "step": np.asarray(step + 1)}


def forty_digits(tensors: dict[str, np.ndarray], attrs: dict[str, Any]) -> list[mpmath.mpf]:
    lr, b1, b2, eps, decay = (mpmath.mpf(attrs[name]) for name in ("lr", "beta1", "beta2", "eps", "weight_decay"))
    n, answer = int(tensors["step"]) + 1, []
    for w, g, m, v in zip(*(tensors[name] for name in ("weight", "gradient", "m", "v")), strict=True):
        w, g, m, v = (mpmath.mpf(float(one)) for one in (w, g, m, v))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        answer.append(w - lr * decay * w - lr * (m / (1 - b1**n)) / (mpmath.sqrt(v / (1 - b2**n)) + eps))
    return answer


@pytest.mark.parametrize("step", [0, 1, 1000])
def test_forty_digits_lie_within_the_references_own_error(step: int) -> None:
    tensors = {**first(), "m": RNG.standard_normal(6), "v": RNG.random(6), "step": np.asarray(step)}
    got = adamw_step(tensors, ATTRS, REFERENCE)["weight_next"]
    with mpmath.workdps(40):
        apart = [abs(float(exact - mpmath.mpf(float(value)))) for exact, value in zip(forty_digits(tensors, ATTRS), got.value, strict=True)]
    assert np.all(apart <= got.error)
    assert np.all(got.error <= 1e-13 * np.maximum(np.abs(got.value), 1))


def test_the_first_step_of_a_fresh_state_is_lr_times_the_sign() -> None:
    """mhat = g and vhat = g^2, so that the step is lr g / (|g| + eps)."""
    tensors = first()
    got = adamw_step(tensors, {**ATTRS, "weight_decay": 0.0}, REFERENCE)["weight_next"]
    g = tensors["gradient"]
    assert near(got, tensors["weight"] - 0.3 * g / (np.abs(g) + 1e-2))
