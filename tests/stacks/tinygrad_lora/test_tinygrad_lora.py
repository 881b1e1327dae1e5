"""The tinygrad stack's LoRA linear against its formula in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, ask, close, double, draw

# OUT is summed in slices, where x's gradient is made; alpha is not the rank
TOKENS, IN, OUT, RANK, ALPHA = 5, 9, 32, 4, 6.0
SHAPES = {"x": (TOKENS, IN), "weight": (OUT, IN), "lora_a": (RANK, IN), "lora_b": (OUT, RANK), "y_bar": (TOKENS, OUT)}
KEEP = np.random.default_rng(0).random((TOKENS, IN)) > 0.25


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dropout", "bias", "rslora"), [(0.0, False, False), (0.25, True, True)])
def test_lora_linear(stack: StackProcess, dtype: str, dropout: float, bias: bool, rslora: bool) -> None:
    tensors = draw(dtype, 1, **SHAPES, **({"bias": (OUT,)} if bias else {}))
    keep = {"keep": KEEP} if dropout else {}
    answer = ask(stack, "lora_linear", tensors | keep, alpha=ALPHA, dropout=dropout, rslora=rslora)
    given, s = double(tensors), ALPHA / (np.sqrt(RANK) if rslora else RANK)
    share = KEEP / (1 - dropout) if dropout else np.ones((TOKENS, IN))
    dropped, a, b, bar = given["x"] * share, given["lora_a"], given["lora_b"], given["y_bar"]
    close(answer["y"], given["x"] @ given["weight"].T + given.get("bias", 0.0) + s * dropped @ a.T @ b.T, 64)
    close(answer["x_grad"], bar @ given["weight"] + s * (bar @ b @ a) * share, 64)
    close(answer["lora_a_grad"], s * (bar @ b).T @ dropped, 64)
    close(answer["lora_b_grad"], s * bar.T @ (dropped @ a.T), 64)
    assert set(answer) == {"y", "x_grad", "lora_a_grad", "lora_b_grad"}


def test_with_b_zero_the_adapter_changes_nothing_and_a_has_no_gradient(stack: StackProcess) -> None:
    tensors = draw("float32", 2, **SHAPES)
    tensors["lora_b"] = np.zeros((OUT, RANK), np.float32)
    answer = ask(stack, "lora_linear", tensors, alpha=ALPHA)
    close(answer["y"], tensors["x"].astype(np.float64) @ tensors["weight"].T.astype(np.float64), 16)
    assert not answer["lora_a_grad"].any()
    assert answer["lora_b_grad"].all()


def test_what_is_dropped_is_no_part_of_the_adapter(stack: StackProcess) -> None:
    tensors = draw("float32", 3, **SHAPES, bias=(OUT,))
    tensors["weight"][:] = 0
    tensors["x"][~KEEP] = 1e38
    whole = ask(stack, "lora_linear", {**tensors, "keep": KEEP}, alpha=ALPHA, dropout=0.25)
    tensors["x"][~KEEP] = 0
    without = ask(stack, "lora_linear", {**tensors, "keep": KEEP}, alpha=ALPHA, dropout=0.25)
    np.testing.assert_array_equal(whole["y"], without["y"])
    np.testing.assert_array_equal(whole["lora_a_grad"], without["lora_a_grad"])


@pytest.mark.parametrize(
    ("change", "keep", "message"),
    [
        ({"dropout": 1.0}, True, r"dropout is 1\.0; allowed: a number of at least 0 and under 1"),
        ({"dropout": -0.1}, True, r"dropout is -0\.1; allowed"),
        ({"dropout": 0.1}, False, r"dropout is 0\.1 and keep is missing; allowed"),
        ({}, True, r"dropout is 0\.0 and keep is given; allowed"),
        ({"alpha": 0}, False, "alpha is 0; allowed: a number over 0"),
        ({"rslora": 1}, False, "rslora is 1; allowed: true, false"),
    ],
)
def test_what_is_refused(stack: StackProcess, change: dict[str, Any], keep: bool, message: str) -> None:
    tensors = draw("float32", 4, **SHAPES) | ({"keep": KEEP} if keep else {})
    with pytest.raises(RequestFailed, match=message) as caught:
        ask(stack, "lora_linear", tensors, **{"alpha": ALPHA, **change})
    assert caught.value.error_class == "ValueError"
