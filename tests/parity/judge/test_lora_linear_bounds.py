"""The adapter's bounds: s anywhere, the mask before or after, any order of sums stay inside; planted errors do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from parity.checks import lora_linear as check
from parity.checks import strategies
from parity.reference.lora_linear import lora_linear
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import Number, Rounding, roundings
from tests.parity.judge.legal_functions import joined

SHAPE = (7, 33, 4, 20)
ATTRS = {"alpha": 3, "rslora": True, "dropout": 0.25}
Arrays = Mapping[str, np.ndarray]


def drawn(kind: str = "gaussian", dtype: str = "float32", attrs: Mapping[str, Any] = ATTRS) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    values = {name: strategies.VALUES[kind](rng, size) for name, size in check.sizes(SHAPE).items()}
    mask = {"keep": rng.random(SHAPE[:2]) >= attrs["dropout"]} if attrs["dropout"] else {}
    return {**primitive_bounds.in_dtype(values, dtype), **mask}


def scale(attrs: Mapping[str, Any]) -> float:
    return float(attrs["alpha"] / (SHAPE[2] ** 0.5 if attrs["rslora"] else SHAPE[2]))


class Given:
    """The inputs as a device has them, and dropout's mask, dividing or multiplying."""

    def __init__(self, rounding: Rounding, tensors: Arrays, attrs: Mapping[str, Any]) -> None:
        self.rounding, self.keep, self.kept = rounding, tensors.get("keep"), 1 - attrs["dropout"]
        self.x, self.w, self.a, self.b, self.bar, self.bias = (
            rounding.given(tensors[name]) for name in ("x", "weight", "lora_a", "lora_b", "y_bar", "bias")
        )
        self.s = scale(attrs)

    def drop(self, x: Number) -> Number:
        return x if self.keep is None else self._masked(x) * (1 / self.kept)

    def drop_after(self, x: Number) -> Number:
        return x if self.keep is None else self._masked(x / self.kept)

    def _masked(self, x: Number) -> Number:
        assert self.keep is not None
        return x.map(lambda value: np.where(self.keep, value, 0.0))


def scaled_last(one: Given) -> dict[str, Number]:
    """As peft: base + s (B (A x)), the mask multiplied in."""
    dropped, d = one.drop(one.x), one.bar * one.s
    h, g = dropped.matmul(one.a.turned()), d.matmul(one.b)
    y = one.x.matmul(one.w.turned()) + one.bias + h.matmul(one.b.turned()) * one.s
    x_grad = one.bar.matmul(one.w) + one.drop(g.matmul(one.a))
    return {"y": y, "x_grad": x_grad, "lora_a_grad": g.turned().matmul(dropped), "lora_b_grad": d.turned().matmul(h)}


def scaled_b(one: Given) -> dict[str, Number]:
    """(s B) (A x), one long sum with the base; the mask divided by 1 - p."""
    dropped, sb = one.drop_after(one.x), one.b * one.s
    h, g = dropped.matmul(one.a.turned()), one.bar.matmul(sb)
    y = joined([h, one.x]).matmul(joined([sb, one.w]).turned()) + one.bias
    x_grad = one.drop_after(g.matmul(one.a)) + one.bar.matmul(one.w)
    return {
        "y": y,
        "x_grad": x_grad,
        "lora_a_grad": g.turned().matmul(dropped),
        "lora_b_grad": one.bar.turned().matmul(h) * one.s,
    }


def scaled_ranks(one: Given) -> dict[str, Number]:
    """B (s (A x)), the bias first; s at the end of A's gradient."""
    dropped = one.drop(one.x)
    sh, g = dropped.matmul(one.a.turned()) * one.s, one.bar.matmul(one.b)
    y = one.bias + one.x.matmul(one.w.turned()) + sh.matmul(one.b.turned())
    x_grad = one.bar.matmul(one.w) + one.drop((g * one.s).matmul(one.a))
    return {
        "y": y,
        "x_grad": x_grad,
        "lora_a_grad": g.turned().matmul(dropped) * one.s,
        "lora_b_grad": one.bar.turned().matmul(sh),
    }


@pytest.mark.parametrize("attrs", [ATTRS, {"alpha": 16, "rslora": False, "dropout": 0.0}], ids=["dropout", "plain"])
@pytest.mark.parametrize("kind", strategies.VALUES)
def test_every_legal_way_stays_inside(kind: str, attrs: Mapping[str, Any]) -> None:
    tensors = drawn(kind, attrs=attrs)
    judged = primitive_bounds.Judged(lora_linear, tensors, attrs, "float32")
    for rounding in roundings():
        for way in (scaled_last, scaled_b, scaled_ranks):
            found = judged.ratios(way(Given(rounding, tensors, attrs)))
            assert max(found.values()) <= 1, (way.__name__, str(rounding), found)


def by_torch(tensors: Arrays, attrs: Mapping[str, Any], bug: str = "") -> dict[str, np.ndarray]:
    x, a, b = primitive_bounds.leaves(tensors, "x", "lora_a", "lora_b")
    s = scale({**attrs, "rslora": attrs["rslora"] and bug != "rslora ignored"})
    s = {"alpha not divided": attrs["alpha"], "s off by 1e-7": s * (1 + 1e-7), "s in float32": float(np.float32(s))}.get(bug, s)
    keep = torch.tensor(tensors["keep"]) if "keep" in tensors else torch.ones_like(x)
    rescaled = x * keep / (1 if bug == "not rescaled" else 1 - attrs["dropout"])
    dropped = x if bug == "nothing dropped" else rescaled
    base = x * keep if bug == "the base dropped too" else x
    weight, bias = (torch.tensor(tensors[name]) for name in ("weight", "bias"))
    y = torch.nn.functional.linear(base, weight, bias) + s * (dropped @ a.T @ b.T)
    return primitive_bounds.answered({"y": y}, {"x": x, "lora_a": a, "lora_b": b}, tensors["y_bar"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", strategies.VALUES)
def test_torch_stays_inside(kind: str, dtype: str) -> None:
    tensors = drawn(kind, dtype)
    found = primitive_bounds.ratios(lora_linear, tensors, ATTRS, dtype, by_torch(tensors, ATTRS))
    assert max(found.values()) <= 1, found
    if (kind, dtype) == ("gaussian", "float32"):
        assert min(found.values()) > 0.01, "the bound is tight"


@pytest.mark.parametrize(
    "bug",
    ["rslora ignored", "alpha not divided", "s off by 1e-7", "s in float32", "not rescaled", "nothing dropped", "the base dropped too"],
)
def test_planted_errors_fail_by_a_wide_factor(bug: str) -> None:
    tensors = drawn(dtype="float64")
    attrs = {**ATTRS, "alpha": 0.7}  # float32 does not hold s = 0.35
    found = primitive_bounds.ratios(lora_linear, tensors, attrs, "float64", by_torch(tensors, attrs, bug))
    seen = ("y", "x_grad") if bug == "the base dropped too" else tuple(found)
    assert min(found[name] for name in seen) > 1e4, found


def test_a_zero_adapter_has_no_gradient_of_a_at_all() -> None:
    tensors = drawn()
    tensors["lora_b"] = np.zeros_like(tensors["lora_b"])
    judged = primitive_bounds.Judged(lora_linear, tensors, ATTRS, "float32")
    assert not judged.expected["lora_a_grad"].any()
    assert not judged.limits["lora_a_grad"].any()
    assert judged.expected["lora_b_grad"].all()


def test_dropped_entries_get_the_base_alone() -> None:
    """Their limit knows no adapter, however large that is."""
    tensors = drawn()
    tensors["lora_a"] = tensors["lora_a"] * np.float32(1e6)
    limit = primitive_bounds.Judged(lora_linear, tensors, ATTRS, "float32").limits["x_grad"]
    assert limit[~tensors["keep"]].max() < 1e-3 * limit[tensors["keep"]].min()


def test_just_past_the_bound_fails() -> None:
    primitive_bounds.assert_edges(lora_linear, drawn(), ATTRS)
