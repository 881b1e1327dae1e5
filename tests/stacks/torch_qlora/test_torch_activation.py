"""SiLU, both GELUs and SwiGLU with their gradients, against mpmath; what is infinite; refusals in words."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest

from tests.stacks.torch_qlora.tiny_torch_graph import unit
from tests.stacks.torch_qlora.torch_compute import DTYPES, assert_rounded, computed, drawn, wide

POINTS = np.concatenate([np.linspace(-6, 6, 97), np.geomspace(1e-20, 1e4, 49), -np.geomspace(1e-20, 1e4, 49), [-88.0, -104.5, 0.0]])

Number = Callable[[mpmath.mpf], tuple[mpmath.mpf, mpmath.mpf]]
"""x -> value, slope."""


def _silu(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    share = 1 / (1 + mpmath.exp(-x))
    return x * share, share * (1 + x * (1 - share))


def _gelu(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    share = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
    return x * share, share + x * mpmath.exp(-x * x / 2) / mpmath.sqrt(2 * mpmath.pi)


def _gelu_tanh(x: mpmath.mpf) -> tuple[mpmath.mpf, mpmath.mpf]:
    rate, cubic = mpmath.sqrt(2 / mpmath.pi), mpmath.mpf("0.044715")
    share = 1 / (1 + mpmath.exp(-2 * rate * (x + cubic * x**3)))
    return x * share, share + x * 2 * share * (1 - share) * rate * (1 + 3 * cubic * x * x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("op", "approximate", "number"),
    [("silu", None, _silu), ("gelu", "none", _gelu), ("gelu", "tanh", _gelu_tanh)],
    ids=["silu", "gelu", "gelu_tanh"],
)
def test_value_and_slope_are_the_formula(op: str, approximate: str | None, number: Number, dtype: str) -> None:
    x, bar = POINTS.astype(dtype), drawn(1, len(POINTS), dtype=dtype)
    got = computed(op, {} if approximate is None else {"approximate": approximate}, {"x": x, "y_bar": bar}, dtype)
    with mpmath.workprec(300):
        pairs = [number(mpmath.mpf(float(point))) for point in x]
    exact, slope = (np.array([np.longdouble(float(one)) for one in column]) for column in zip(*pairs, strict=True))
    assert np.all(np.isfinite(got["y"]))
    # x enters an exponential, whose error counts by its size; 10 roundings beside it. GELU's share 1 + erf or 1 + tanh cancels
    # for negative x: what is lost there counts by the terms.
    reach = 10 + np.minimum(np.abs(wide(x)), 120) * (1 if op == "silu" else 4)
    size = np.abs(exact) if op == "silu" else np.abs(x)
    of_slope = np.abs(slope) + np.abs(exact) if op == "silu" else 1 + np.abs(slope)
    tiny = float(np.finfo(dtype).smallest_normal)
    assert np.all(np.abs(got["y"] - exact) <= unit(dtype) * reach * size + tiny)
    assert np.all(np.abs(got["x_grad"] - slope * bar) <= unit(dtype) * reach * of_slope * np.abs(bar) + tiny)


def test_gelu_in_float32_is_as_good_as_its_formula_allows() -> None:
    """x / 2 (1 + erf) is a few roundings off, of terms of 1; torch's fused kernel is off by more than twice this."""
    x = np.linspace(-6, 3, 20_001).astype(np.float32)
    exact = np.array([one * math.erfc(-one / math.sqrt(2)) / 2 for one in x.tolist()])
    got = computed("gelu", {"approximate": "none"}, {"x": x}, "float32")["y"]
    assert np.all(np.abs(got - exact) <= 2.5 * unit("float32") * np.abs(x) * (1 + np.maximum(x, 0)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu_and_its_gradients_are_the_formula(dtype: str) -> None:
    given = {name: drawn(seed, 4, 9, dtype=dtype) for seed, name in enumerate(("gate", "up", "y_bar"))}
    got = computed("swiglu", {}, given, dtype)
    gate, up, bar = (wide(given[name]) for name in ("gate", "up", "y_bar"))
    share = 1 / (1 + np.exp(-gate))
    slope, size = share * (1 + gate * (1 - share)), share * (1 + np.abs(gate) * (1 - share))
    assert_rounded(got["y"], gate * share * up, gate * share * up, 16, dtype)
    assert_rounded(got["up_grad"], gate * share * bar, gate * share * bar, 16, dtype)
    assert_rounded(got["gate_grad"], slope * up * bar, 2 * size * up * bar, 16, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("op", "attrs"), [("silu", {}), ("gelu", {"approximate": "none"}), ("gelu", {"approximate": "tanh"})])
def test_far_out_it_is_x_or_nothing(op: str, attrs: dict[str, str], dtype: str) -> None:
    far = float(np.finfo(dtype).max) / 4
    x = np.array([1e4, far, np.inf, -1e4])
    got = computed(op, attrs, {"x": x}, dtype)["y"]
    np.testing.assert_array_equal(got, np.array([1e4, far, np.inf, 0]).astype(dtype))
    assert np.isnan(computed(op, attrs, {"x": np.array([np.nan])}, dtype)["y"]).all()


@pytest.mark.parametrize("approximate", [None, "erf", "quick", True])
def test_an_unknown_gelu_is_refused(approximate: object) -> None:
    with pytest.raises(ValueError, match=f"gelu: approximate is '{approximate}'; allowed: none, tanh"):
        computed("gelu", {} if approximate is None else {"approximate": approximate}, {"x": np.zeros(2)}, "float32")
