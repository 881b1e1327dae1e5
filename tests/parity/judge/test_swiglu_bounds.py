"""SwiGLU's bounds: every legal arrangement stays inside, planted errors do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from parity.checks import activations
from parity.reference.running_error import REFERENCE
from parity.reference.swiglu import swiglu
from tests.parity.judge import primitive_bounds
from tests.parity.judge.legal_arithmetic import roundings
from tests.parity.judge.test_silu_bounds import GRADIENTS, SIGMOIDS, Arrays, drawn


def of_gate(kind: str, dtype: str = "float32") -> dict[str, np.ndarray]:
    tensors, rng = drawn(kind, dtype), np.random.default_rng(3)
    return {"gate": tensors["x"][None], "up": rng.standard_normal((1, 65)).astype(dtype), "y_bar": tensors["y_bar"][None]}


@pytest.mark.parametrize("kind", activations.X_KINDS)
def test_every_legal_way_stays_inside(kind: str) -> None:
    given = of_gate(kind)
    judged = primitive_bounds.Judged(swiglu, given, {}, "float32")
    with np.errstate(all="ignore"):
        for rounding in roundings():
            gate, up, bar = (rounding.given(given[name]) for name in ("gate", "up", "y_bar"))
            for way, sigmoid in enumerate(SIGMOIDS):
                sigma, gradient = sigmoid(gate), GRADIENTS[way % 2]
                swish = gate * sigma
                found = judged.ratios({"y": swish * up, "gate_grad": gradient(gate, sigma, bar * up), "up_grad": bar * swish})
                assert max(found.values()) <= 1, (sigmoid.__name__, gradient.__name__, str(rounding), found)


def by_torch(tensors: Arrays) -> dict[str, np.ndarray]:
    gate, up = primitive_bounds.leaves(tensors, "gate", "up")
    return primitive_bounds.answered({"y": torch.nn.functional.silu(gate) * up}, {"gate": gate, "up": up}, tensors["y_bar"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", activations.X_KINDS)
def test_torch_stays_inside(kind: str, dtype: str) -> None:
    tensors = of_gate(kind, dtype)
    found = primitive_bounds.ratios(swiglu, tensors, {}, dtype, by_torch(tensors))
    assert max(found.values()) <= 1, found
    if (kind, dtype) == ("gaussian", "float32"):
        assert min(found.values()) > 0.05, "the bound is tight"


def test_just_past_the_bound_fails() -> None:
    primitive_bounds.assert_edges(swiglu, of_gate("gaussian"), {})


def test_gate_and_up_swapped_fail() -> None:
    tensors = of_gate("gaussian", "float64")
    right = {name: one.value for name, one in swiglu(tensors, {}, REFERENCE).items()}
    swapped = swiglu({**tensors, "gate": tensors["up"], "up": tensors["gate"]}, {}, REFERENCE)
    wrong = {"y": swapped["y"].value, "gate_grad": swapped["up_grad"].value, "up_grad": swapped["gate_grad"].value}
    assert max(primitive_bounds.ratios(swiglu, tensors, {}, "float64", right).values()) == 0
    assert min(primitive_bounds.ratios(swiglu, tensors, {}, "float64", wrong).values()) > 1e10
