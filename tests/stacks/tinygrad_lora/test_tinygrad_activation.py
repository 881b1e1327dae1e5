"""SiLU, GELU and SwiGLU of the tinygrad stack against SciPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import erf, expit

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, ask, close, double, draw


def points(dtype: str) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(3)
    x = np.concatenate([generator.uniform(-8, 8, 200), generator.choice([-1, 1], 56) * 10 ** generator.uniform(-30, 4, 56)])
    return {"x": x.astype(dtype), "y_bar": generator.standard_normal(x.size).astype(dtype)}


def agree(got: np.ndarray, wanted: np.ndarray, size: np.ndarray) -> None:
    """Element by element, within 8 roundings of the size of the terms."""
    assert (np.abs(got - wanted) <= 8 * float(np.finfo(got.dtype).eps) * size + 16 * float(np.finfo(got.dtype).smallest_normal)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu(stack: StackProcess, dtype: str) -> None:
    tensors = points(dtype)
    answer, given = ask(stack, "silu", tensors), double(tensors)
    x, s = given["x"], expit(given["x"])
    agree(answer["y"], x * s, np.abs(x * s))
    agree(answer["x_grad"], given["y_bar"] * (s + x * s * expit(-x)), np.abs(given["y_bar"]) * s * (1 + np.abs(x) * expit(-x)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu(stack: StackProcess, dtype: str) -> None:
    tensors = points(dtype)
    answer, given = ask(stack, "gelu", tensors, approximate="none"), double(tensors)
    x, phi = given["x"], np.exp(-(given["x"] ** 2) / 2) / np.sqrt(2 * np.pi)
    share = (1 + erf(x / np.sqrt(2))) / 2
    agree(answer["y"], x * share, np.abs(x))
    # e^(-x^2 / 2) has x^2 times its argument's rounding
    agree(answer["x_grad"], given["y_bar"] * (share + x * phi), np.abs(given["y_bar"]) * (1 + np.abs(x) ** 3 * phi))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_by_tanh(stack: StackProcess, dtype: str) -> None:
    tensors = points(dtype)
    answer, given = ask(stack, "gelu", tensors, approximate="tanh"), double(tensors)
    x, root = given["x"], np.sqrt(2 / np.pi)
    t = np.tanh(root * (x + 0.044715 * x**3))
    agree(answer["y"], x / 2 * (1 + t), np.abs(x))
    slope = x / 2 * (1 - t * t) * root * (1 + 3 * 0.044715 * x**2)
    agree(answer["x_grad"], given["y_bar"] * ((1 + t) / 2 + slope), np.abs(given["y_bar"]) * (1 + np.minimum(np.abs(x), 10) ** 3))


def test_the_two_gelus_are_told_apart(stack: StackProcess) -> None:
    tensors = points("float64")
    assert np.abs(ask(stack, "gelu", tensors, approximate="none")["y"] - ask(stack, "gelu", tensors, approximate="tanh")["y"]).max() > 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(stack: StackProcess, dtype: str) -> None:
    tensors = draw(dtype, 6, gate=(4, 9), up=(4, 9), y_bar=(4, 9))
    answer, given = ask(stack, "swiglu", tensors), double(tensors)
    gate, s = given["gate"], expit(given["gate"])
    close(answer["y"], gate * s * given["up"], 8)
    close(answer["up_grad"], gate * s * given["y_bar"], 8)
    close(answer["gate_grad"], given["y_bar"] * given["up"] * (s + gate * s * (1 - s)), 8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_stays(stack: StackProcess, dtype: str) -> None:
    tensors = points(dtype)
    tensors["x"][:3] = np.inf, 1.0, np.nan
    for attrs in ({}, {"approximate": "none"}, {"approximate": "tanh"}):
        y = ask(stack, "gelu" if attrs else "silu", tensors, **attrs)["y"]
        assert y[0] == np.inf
        assert np.isnan(y[2])


def test_another_approximation_is_refused(stack: StackProcess) -> None:
    with pytest.raises(RequestFailed, match="approximate is 'sigmoid'; allowed: none, tanh") as caught:
        ask(stack, "gelu", {"x": np.ones(3, np.float32)}, approximate="sigmoid")
    assert caught.value.error_class == "ValueError"
