"""The reference of the LoRA linear against peft's own module, and against autograd of its formula with a mask."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraConfig
from peft.tuners.lora.layer import Linear

from parity.reference.lora_linear import lora_linear
from parity.reference.running_error import REFERENCE

TOKENS, INNER, RANK, OUT = 5, 7, 3, 4


def drawn(*, bias: bool = True, dropout: float = 0.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    sizes = {"x": (TOKENS, INNER), "weight": (OUT, INNER), "lora_a": (RANK, INNER), "lora_b": (OUT, RANK), "y_bar": (TOKENS, OUT)}
    sizes |= {"bias": (OUT,)} if bias else {}
    mask = {"keep": rng.random((TOKENS, INNER)) >= dropout} if dropout else {}
    return {**{name: rng.standard_normal(size) for name, size in sizes.items()}, **mask}


def assert_same(tensors: Mapping[str, np.ndarray], attrs: Mapping[str, Any], y: torch.Tensor, leaves: Mapping[str, torch.Tensor]) -> None:
    got = lora_linear(tensors, attrs, REFERENCE)
    assert set(got) == {"y", "x_grad", "lora_a_grad", "lora_b_grad"}
    assert np.all(np.abs(got["y"].value - y.detach().numpy()) <= 2 * got["y"].error)
    gradients = torch.autograd.grad(y, list(leaves.values()), torch.tensor(tensors["y_bar"]))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert np.all(np.abs(got[f"{name}_grad"].value - gradient.numpy()) <= 2 * got[f"{name}_grad"].error)
        assert got[f"{name}_grad"].value.all()


@pytest.mark.parametrize(("rslora", "alpha"), list(itertools.product((False, True), (1, 8))))
def test_peft(rslora: bool, alpha: int) -> None:
    tensors = drawn()
    base = torch.nn.Linear(INNER, OUT, dtype=torch.float64)
    config = LoraConfig(r=RANK, lora_alpha=alpha, use_rslora=rslora)
    layer = Linear(base, adapter_name="one", config=config, r=RANK, lora_alpha=alpha).double()
    leaves = {"x": torch.tensor(tensors["x"], requires_grad=True)}
    leaves["lora_a"], leaves["lora_b"] = layer.lora_A["one"].weight, layer.lora_B["one"].weight
    with torch.no_grad():
        for name, parameter in (("weight", base.weight), ("bias", base.bias), ("lora_a", leaves["lora_a"]), ("lora_b", leaves["lora_b"])):
            parameter.copy_(torch.tensor(tensors[name]))
    assert_same(tensors, {"alpha": alpha, "rslora": rslora, "dropout": 0.0}, layer(leaves["x"]), leaves)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_formula_with_a_mask(rslora: bool, bias: bool) -> None:
    tensors = drawn(bias=bias, dropout=0.25)
    leaves = {name: torch.tensor(tensors[name], requires_grad=True) for name in ("x", "lora_a", "lora_b")}
    dropped = torch.where(torch.tensor(tensors["keep"]), leaves["x"] / 0.75, torch.zeros(()))
    s = 5 / (math.sqrt(RANK) if rslora else RANK)
    base = leaves["x"] @ torch.tensor(tensors["weight"]).T + (torch.tensor(tensors["bias"]) if bias else 0)
    y = base + s * (dropped @ leaves["lora_a"].T @ leaves["lora_b"].T)
    assert_same(tensors, {"alpha": 5, "rslora": rslora, "dropout": 0.25}, y, leaves)


def test_without_a_cotangent_there_is_no_gradient() -> None:
    tensors = {name: array for name, array in drawn().items() if name != "y_bar"}
    assert set(lora_linear(tensors, {"alpha": 1, "rslora": False, "dropout": 0.0}, REFERENCE)) == {"y"}
