"""RMSNorm and LayerNorm of the tinygrad stack against their formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from contract.worker.process import RequestFailed, StackProcess
from tests.stacks.tinygrad_lora.tinygrad_worker import DTYPES, ask, close, double, draw

SHAPES = {"x": (5, 24), "weight": (24,), "y_bar": (5, 24)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm(stack: StackProcess, dtype: str) -> None:
    tensors = draw(dtype, 1, **SHAPES)
    answer, given = ask(stack, "rms_norm", tensors, eps=1e-2), double(tensors)
    rate = 1 / np.sqrt((given["x"] ** 2).mean(axis=1, keepdims=True) + 1e-2)
    normed, scaled = given["x"] * rate, given["y_bar"] * given["weight"]
    close(answer["y"], normed * given["weight"], 8)
    close(answer["x_grad"], rate * (scaled - normed * (scaled * normed).mean(axis=1, keepdims=True)), 32)
    close(answer["weight_grad"], (given["y_bar"] * normed).sum(axis=0), 32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm(stack: StackProcess, dtype: str) -> None:
    tensors = draw(dtype, 2, **SHAPES, bias=(24,))
    tensors["x"] += 100  # the mean square less the squared mean would cancel
    answer, given = ask(stack, "layer_norm", tensors, eps=1e-2), double(tensors)
    centred = given["x"] - given["x"].mean(axis=1, keepdims=True)
    rate = 1 / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-2)
    normed, scaled = centred * rate, given["y_bar"] * given["weight"]
    # the mean's own rounding is one of 100
    close(answer["y"], normed * given["weight"] + given["bias"], 200)
    inner = scaled.mean(axis=1, keepdims=True) + normed * (scaled * normed).mean(axis=1, keepdims=True)
    close(answer["x_grad"], rate * (scaled - inner), 400)
    close(answer["weight_grad"], (given["y_bar"] * normed).sum(axis=0), 400)
    close(answer["bias_grad"], given["y_bar"].sum(axis=0), 32)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_a_row_of_zeros_is_no_division_by_zero(stack: StackProcess, op: str) -> None:
    tensors = draw("float32", 3, **SHAPES) | ({"bias": np.zeros(24, np.float32)} if op == "layer_norm" else {})
    tensors["x"] = np.zeros((5, 24), np.float32)
    answer = ask(stack, op, tensors, eps=1e-6)
    assert not answer["y"].any()
    assert np.isfinite(answer["x_grad"]).all()


@pytest.mark.parametrize(
    ("attrs", "message"),
    [({}, "attribute 'eps' is missing"), ({"eps": -1.0}, r"eps is -1\.0; allowed: a number over 0"), ({"eps": True}, "eps is True")],
)
def test_what_is_refused(stack: StackProcess, attrs: dict[str, object], message: str) -> None:
    with pytest.raises(RequestFailed, match=message) as caught:
        ask(stack, "rms_norm", draw("float32", 4, **SHAPES), **attrs)
    assert caught.value.error_class == "ValueError"
