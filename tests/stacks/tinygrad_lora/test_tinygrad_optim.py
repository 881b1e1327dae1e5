"""Clipping and the AdamW step of the tinygrad stack against their formulas in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, ask, close, double, draw

NUMBERS = {"lr": 0.05, "beta1": 0.8, "beta2": 0.97, "eps": 1e-3, "weight_decay": 0.3}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_that_binds(stack: StackProcess, dtype: str) -> None:
    tensors = draw(dtype, 1, a=(4, 5), b=(7,))
    answer, given = ask(stack, "clip_gradients", tensors, max_norm=0.5), double(tensors)
    norm = np.sqrt((given["a"] ** 2).sum() + (given["b"] ** 2).sum())
    close(answer["norm"], norm, 8)
    close(answer["a_clipped"], given["a"] * 0.5 / (norm + 1e-6), 8)
    close(answer["b_clipped"], given["b"] * 0.5 / (norm + 1e-6), 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_clip_that_does_not_bind_changes_no_bit(stack: StackProcess, dtype: str) -> None:
    tensors = draw(dtype, 2, a=(4, 5), b=(7,))
    answer = ask(stack, "clip_gradients", tensors, max_norm=1e3)
    assert answer["a_clipped"].tobytes() == tensors["a"].tobytes()
    assert answer["b_clipped"].tobytes() == tensors["b"].tobytes()


def test_a_norm_that_is_nan_is_in_every_gradient(stack: StackProcess) -> None:
    tensors = draw("float32", 3, a=(4, 5), b=(7,))
    tensors["a"][1, 2] = np.nan
    answer = ask(stack, "clip_gradients", tensors, max_norm=1.0)
    assert np.isnan(answer["b_clipped"]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("step", [0, 1, 1000])
def test_adamw_step(stack: StackProcess, dtype: str, step: int) -> None:
    tensors = draw(dtype, 4, weight=(9,), gradient=(9,), m=(9,), v=(9,))
    tensors["v"] = np.abs(tensors["v"])
    answer, given = ask(stack, "adamw_step", {**tensors, "step": np.array(step)}, **NUMBERS), double(tensors)
    n, g = step + 1, given["gradient"]
    m, v = 0.8 * given["m"] + 0.2 * g, 0.97 * given["v"] + 0.03 * g * g
    update = 0.05 * (m / (1 - 0.8**n)) / (np.sqrt(v / (1 - 0.97**n)) + 1e-3)
    close(answer["m_next"], m, 4)
    close(answer["v_next"], v, 4)
    close(answer["weight_next"], given["weight"] * (1 - 0.05 * 0.3) - update, 16)
    assert answer["step_next"] == n


def test_nothing_moves_without_gradient_moments_and_decay(stack: StackProcess) -> None:
    weight, zero = draw("float32", 5, weight=(9,))["weight"], np.zeros(9, np.float32)
    given = {"weight": weight, "gradient": zero, "m": zero, "v": zero, "step": np.array(0)}
    answer = ask(stack, "adamw_step", given, **{**NUMBERS, "weight_decay": 0.0})
    assert answer["weight_next"].tobytes() == weight.tobytes()


@pytest.mark.parametrize(
    ("change", "step", "message"),
    [
        ({}, -1, "step is -1; allowed"),
        ({"beta1": 1.0}, 0, r"beta1 is 1\.0; allowed: a number of at least 0 and under 1"),
        ({"lr": -0.1}, 0, r"lr is -0\.1; allowed: a number of at least 0"),
        ({"eps": "small"}, 0, "eps is 'small'; allowed"),
    ],
)
def test_steps_that_are_refused(stack: StackProcess, change: dict[str, Any], step: int, message: str) -> None:
    tensors = {**draw("float32", 6, weight=(9,), gradient=(9,), m=(9,), v=(9,)), "step": np.array(step)}
    with pytest.raises(RequestFailed, match=message) as caught:
        ask(stack, "adamw_step", tensors, **{**NUMBERS, **change})
    assert caught.value.error_class == "ValueError"


@pytest.mark.parametrize("max_norm", [0.0, -1.0])
def test_a_clip_to_nothing_is_refused(stack: StackProcess, max_norm: float) -> None:
    with pytest.raises(RequestFailed, match=r"max_norm is .*; allowed: a number over 0") as caught:
        ask(stack, "clip_gradients", draw("float32", 7, a=(4, 5), b=(7,)), max_norm=max_norm)
    assert caught.value.error_class == "ValueError"
