"""RMSNorm and LayerNorm with their gradients, against the formulas in extended precision; refusals in words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stacks.torch_qlora.norm import RmsNorm, rms_norm
from tests.stacks.torch_qlora.torch_compute import DTYPES, assert_rounded, computed, drawn, wide

T, D = 5, 12
EPS = 0.01


def _rows(dtype: str) -> dict[str, np.ndarray]:
    x = drawn(0, T, D, dtype=dtype)
    x[0] *= 2.0**-10  # where eps rules
    x[1] *= 2.0**10
    return {"x": x, "weight": drawn(1, D, dtype=dtype) + 1, "y_bar": drawn(2, T, D, dtype=dtype)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_and_its_gradients_are_the_formula(dtype: str) -> None:
    given = {name: tensor.astype(dtype).astype(np.float64) for name, tensor in _rows(dtype).items()}
    got = computed("rms_norm", {"eps": EPS}, given, dtype)
    x, weight, bar = (wide(given[name]) for name in ("x", "weight", "y_bar"))
    rate = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.longdouble(EPS))
    g, xhat = bar * weight, x * rate
    mean = (g * xhat).mean(-1, keepdims=True)
    steps = 4 * D + 20
    assert_rounded(got["y"], xhat * weight, xhat * weight, steps, dtype)
    size = rate * (np.abs(g) + np.abs(xhat) * np.abs(g * xhat).mean(-1, keepdims=True))
    assert_rounded(got["x_grad"], rate * (g - xhat * mean), size, steps, dtype)
    assert_rounded(got["weight_grad"], (bar * xhat).sum(0), np.abs(bar * xhat).sum(0), steps, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_and_its_gradients_are_the_formula(dtype: str) -> None:
    given = {name: tensor.astype(dtype).astype(np.float64) for name, tensor in (_rows(dtype) | {"bias": drawn(3, D, dtype=dtype)}).items()}
    got = computed("layer_norm", {"eps": EPS}, given, dtype)
    x, weight, bias, bar = (wide(given[name]) for name in ("x", "weight", "bias", "y_bar"))
    centred = x - x.mean(-1, keepdims=True)
    rate = 1 / np.sqrt((centred**2).mean(-1, keepdims=True) + np.longdouble(EPS))
    g, xhat = bar * weight, centred * rate
    # What is subtracted counts by its size, in xhat once and in the rate by the spread of a row.
    reach = (np.abs(x) + np.abs(x).mean(-1, keepdims=True)) * rate
    spread = 1 + np.abs(reach).mean(-1, keepdims=True) ** 2
    steps = 4 * D + 20
    assert_rounded(got["y"], xhat * weight + bias, reach * spread * np.abs(weight) + np.abs(bias), steps, dtype)
    means = g.mean(-1, keepdims=True) + xhat * (g * xhat).mean(-1, keepdims=True)
    sizes = np.abs(g).mean(-1, keepdims=True) + reach * (np.abs(g) * reach).mean(-1, keepdims=True)
    assert_rounded(got["x_grad"], rate * (g - means), rate * spread * (np.abs(g) + sizes), steps, dtype)
    assert_rounded(got["weight_grad"], (bar * xhat).sum(0), (np.abs(bar) * reach * spread).sum(0), steps, dtype)
    assert_rounded(got["bias_grad"], bar.sum(0), np.abs(bar).sum(0), steps, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_zeros_has_no_nan(dtype: str) -> None:
    given = _rows(dtype)
    given["x"][:] = 0
    got = computed("rms_norm", {"eps": 1e-6}, given, dtype)
    assert not got["y"].any()
    assert np.isfinite(got["x_grad"]).all()
    assert got["x_grad"].any()
    shifted = computed("layer_norm", {"eps": 1e-6}, given | {"bias": drawn(3, D, dtype=dtype)}, dtype)
    np.testing.assert_array_equal(shifted["y"], np.broadcast_to(drawn(3, D, dtype=dtype).astype(dtype), (T, D)))
    assert np.isfinite(shifted["x_grad"]).all()


def test_the_graphs_module_is_the_function() -> None:
    x, weight = torch.from_numpy(drawn(0, 2, 3, D)), torch.from_numpy(drawn(1, D))
    assert torch.equal(RmsNorm(torch.nn.Parameter(weight, requires_grad=False), EPS)(x), rms_norm(x, weight, eps=EPS))


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("eps", [None, 0, -1e-6, float("nan"), float("inf"), "1e-6", True])
def test_an_eps_that_is_no_positive_number_is_refused(op: str, eps: object) -> None:
    given = {name: tensor for name, tensor in _rows("float32").items() if name != "y_bar"}
    if op == "layer_norm":
        given["bias"] = drawn(3, D)
    with pytest.raises(ValueError, match=rf"{op}: eps is .*; allowed: a finite number above 0; set the attribute eps"):
        computed(op, {} if eps is None else {"eps": eps}, given, "float32")
