"""Clipping and AdamW against their formulas in extended precision, bit for bit against torch's own loop, refusals in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stacks.torch_qlora.optim import AdamW
from tests.stacks.torch_qlora.tiny_torch_graph import gamma
from tests.stacks.torch_qlora.torch_compute import DTYPES, assert_rounded, computed, drawn, wide

N = 24
SETTINGS: dict[str, Any] = {"lr": 0.125, "beta1": 0.8, "beta2": 0.95, "eps": 0.01, "weight_decay": 0.3}


def _state(dtype: str, step: int) -> dict[str, np.ndarray]:
    given = {name: drawn(seed, N, dtype=dtype) for seed, name in enumerate(("weight", "gradient", "m"))}
    return given | {"v": drawn(3, N, dtype=dtype) ** 2, "step": np.asarray(step)}


@pytest.mark.parametrize("step", [0, 1, 999, 2**24 + 1])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_is_the_formula(dtype: str, step: int) -> None:
    given = {name: tensor.astype(dtype).astype(np.float64) if name != "step" else tensor for name, tensor in _state(dtype, step).items()}
    got = computed("adamw_step", SETTINGS, given, dtype)
    weight, gradient, m, v = (wide(given[name]) for name in ("weight", "gradient", "m", "v"))
    lr, beta1, beta2, eps, decay = (np.longdouble(SETTINGS[name]) for name in ("lr", "beta1", "beta2", "eps", "weight_decay"))
    m_next, v_next = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
    of_m = np.abs(m) + np.abs(gradient)
    denominator = np.sqrt(v_next / (1 - beta2 ** (step + 1))) + eps
    kept, scale = weight * (1 - lr * decay), lr / (1 - beta1 ** (step + 1)) / denominator
    assert got["step_next"] == step + 1
    assert_rounded(got["m_next"], m_next, of_m, 6, dtype)
    assert_rounded(got["v_next"], v_next, v_next, 6, dtype)
    assert_rounded(got["weight_next"], kept - scale * m_next, np.abs(kept) + scale * of_m, 20, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_one_by_one_are_torchs_own_steps(dtype: str) -> None:
    """State goes out and in again between them; torch keeps its own."""
    parameter = torch.nn.Parameter(torch.from_numpy(drawn(0, N).astype(dtype)))
    optimizer = torch.optim.AdamW([parameter], lr=SETTINGS["lr"], betas=(0.8, 0.95), eps=0.01, weight_decay=0.3)
    state = {"weight": drawn(0, N).astype(dtype), "m": np.zeros(N), "v": np.zeros(N), "step": np.asarray(0)}
    for step in range(5):
        gradient = drawn(10 + step, N).astype(dtype)
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
        got = computed("adamw_step", SETTINGS, state | {"gradient": gradient}, dtype)
        state = {name: got[f"{name}_next"] for name in state}
        assert state["weight"].tobytes() == parameter.detach().numpy().tobytes()
    np.testing.assert_array_equal(state["m"], optimizer.state[parameter]["exp_avg"].numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_given_stays_and_nothing_to_do_changes_nothing(dtype: str) -> None:
    given = {name: tensor.astype(dtype) if name != "step" else tensor for name, tensor in _state(dtype, 3).items()}
    before = {name: tensor.copy() for name, tensor in given.items()}
    computed("adamw_step", SETTINGS, given, dtype)
    assert all(given[name].tobytes() == before[name].tobytes() for name in given)
    still = given | {name: np.zeros(N) for name in ("gradient", "m", "v")}
    got = computed("adamw_step", SETTINGS | {"weight_decay": 0}, still, dtype)
    assert got["weight_next"].tobytes() == given["weight"].tobytes()


def test_moments_that_were_given_stay() -> None:
    parameter = torch.nn.Parameter(torch.ones(N))
    m, v = {"weight": torch.full((N,), 0.5)}, {"weight": torch.full((N,), 0.25)}
    optimizer = AdamW({"weight": parameter}, beta1=0.8, beta2=0.95, eps=0.01, weight_decay=0.3)
    optimizer.restore(m, v, 7)
    parameter.grad = torch.ones(N)
    optimizer.update(0.125)
    assert (m["weight"] == 0.5).all()
    assert (v["weight"] == 0.25).all()
    assert all((moments["weight"] != given["weight"]).all() for moments, given in zip(optimizer.moments(), (m, v), strict=True))
    assert optimizer.updates == 8


@pytest.mark.parametrize("max_norm", [0.75, 4.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_that_binds_is_the_formula_over_both_tensors(dtype: str, max_norm: float) -> None:
    given = {"a": drawn(0, 3, 5, dtype=dtype), "b": 3 * drawn(1, 7, dtype="float32")}
    got = computed("clip_gradients", {"max_norm": max_norm}, given, dtype)
    norm = np.sqrt((wide(given["a"]) ** 2).sum() + (wide(given["b"]) ** 2).sum())
    scale = max_norm / (norm + np.longdouble(1e-6))
    assert scale < 1
    assert abs(got["norm"] - norm) <= gamma(30, dtype) * norm
    for name in ("a", "b"):
        assert_rounded(got[f"{name}_clipped"], wide(given[name]) * scale, wide(given[name]) * scale, 34, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_that_does_not_bind_changes_no_bit(dtype: str) -> None:
    given = {"a": drawn(0, 3, 5, dtype=dtype), "b": drawn(1, 7, dtype=dtype)}
    got = computed("clip_gradients", {"max_norm": 100.0}, given, dtype)
    assert all(got[f"{name}_clipped"].tobytes() == given[name].astype(dtype).tobytes() for name in given)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("lr", -0.1, "of at least 0"), ("beta1", 1.0, "of at least 0 and below 1"), ("beta2", -0.1, "of at least 0 and below 1"),
        ("eps", 0, "above 0"), ("weight_decay", -1, "of at least 0"), ("weight_decay", None, "of at least 0"),
        ("lr", "1e-3", "of at least 0"),
    ],
)  # fmt: skip
def test_settings_that_are_not_adamws_are_refused(name: str, value: object, allowed: str) -> None:
    attrs = {key: one for key, one in (SETTINGS | {name: value}).items() if one is not None}
    with pytest.raises(ValueError, match=f"adamw_step: {name} is .*; allowed: a finite number {allowed}; set the attribute {name}"):
        computed("adamw_step", attrs, _state("float32", 0), "float32")


def test_a_negative_step_and_a_clip_to_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="adamw_step: step is -1; allowed: 0 and more, the steps taken so far"):
        computed("adamw_step", SETTINGS, _state("float32", -1), "float32")
    given = {"a": drawn(0, 3, 5), "b": drawn(1, 7)}
    for max_norm in (0, -1.0, None):
        with pytest.raises(ValueError, match=r"clip_gradients: max_norm is .*; allowed: a finite number above 0"):
            computed("clip_gradients", {} if max_norm is None else {"max_norm": max_norm}, given, "float32")
