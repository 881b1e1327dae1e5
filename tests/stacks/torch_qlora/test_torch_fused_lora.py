"""LoRA as one operation of autograd against peft's own module, and the loss that projects rows by itself against the plain one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from contract.worker.plan import Lora
from stacks.torch_qlora import lora
from stacks.torch_qlora.fused_lora import fused_lora
from stacks.torch_qlora.linear import FrozenLinear
from stacks.torch_qlora.nf4_linear import Linear4bit

SEQUENCES, TOKENS, INNER, OUTER, RANK = 2, 5, 24, 17, 3
PATH = "layers.3.q_proj"


def drawn(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def module_of(dtype: torch.dtype, *, fused: bool, base: str, rslora: bool = False) -> nn.Module:
    """A model with one linear that has LoRA, masters in float32 at least."""
    weight, bias = drawn(OUTER, INNER, seed=1), drawn(OUTER, seed=2, dtype=dtype)
    held: nn.Module
    if base == "nf4":
        held = Linear4bit(weight.float(), bias, block_size=32, double_quant=True)
    else:
        held = FrozenLinear(weight.to(dtype), bias)
    model = nn.ModuleDict({"layers": nn.ModuleDict({"3": nn.ModuleDict({"q_proj": held})})})
    masters = torch.float64 if dtype == torch.float64 else torch.float32
    adapter = {f"{PATH}.lora_a": drawn(RANK, INNER, seed=3, dtype=masters), f"{PATH}.lora_b": drawn(OUTER, RANK, seed=4, dtype=masters)}
    lora.inject(model, Lora(rank=RANK, alpha=7.0, rslora=rslora), adapter, fused=fused)
    return model


def passed(model: nn.Module, dtype: torch.dtype, *, dropped: bool) -> dict[str, torch.Tensor]:
    """What the module gives, and the gradients of a random cotangent."""
    keep = torch.rand(SEQUENCES, TOKENS, INNER, generator=torch.Generator().manual_seed(9)) < 0.75
    lora.set_dropout(model, (lambda path, width: keep) if dropped else None, 0.25 if dropped else 0.0)
    x = drawn(SEQUENCES, TOKENS, INNER, seed=5, dtype=dtype).requires_grad_()
    y = model.get_submodule(PATH)(x)
    leaves = {"x": x, **lora.parameters(model)}
    bars = torch.autograd.grad(y, list(leaves.values()), drawn(*y.shape, seed=6, dtype=dtype))
    return {"y": y.detach(), **{f"grad.{name}": bar for name, bar in zip(leaves, bars, strict=True)}}


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("base", ["none", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_is_pefts_module(dtype: torch.dtype, base: str, dropped: bool, rslora: bool) -> None:
    """Within the roundings of either: each is held against peft's in float64."""
    if base == "nf4" and dtype == torch.float64:
        base = "none"
    ours, pefts = (passed(module_of(dtype, fused=fused, base=base, rslora=rslora), dtype, dropped=dropped) for fused in (True, False))
    # Lengths of sums, then roundings to the dtype of A x, of what is scaled, of the sum of two products, and of the dropped x.
    accumulated = torch.float64 if dtype == torch.float64 else torch.float32
    steps = (INNER + OUTER + RANK + 16) * torch.finfo(accumulated).eps + 8 * torch.finfo(dtype).eps
    held = module_of(dtype, fused=True, base=base).get_submodule(PATH).base_layer
    weight = (held.dequantized() if isinstance(held, Linear4bit) else held.weight).double()
    sizes = {name: abs_sizes(name, weight, dropped=dropped, rslora=rslora) for name in ours}
    for name, got in ours.items():
        assert got.dtype == pefts[name].dtype
        assert bool(((got.double() - pefts[name].double()).abs() <= 2 * steps * sizes[name]).all()), name
        assert got.any()


def abs_sizes(name: str, weight: torch.Tensor, *, dropped: bool, rslora: bool) -> torch.Tensor:
    """The sum of the absolute terms of what is computed, which its roundings are relative to."""
    share = 1 / 0.75 if dropped else 1.0
    scale = 7.0 / (RANK**0.5 if rslora else RANK)
    x, w, bias = drawn(SEQUENCES, TOKENS, INNER, seed=5).abs(), weight.abs(), drawn(OUTER, seed=2).abs()
    a, b = drawn(RANK, INNER, seed=3).abs(), drawn(OUTER, RANK, seed=4).abs()
    bar = drawn(SEQUENCES, TOKENS, OUTER, seed=6).abs()
    if name == "y":
        return x @ w.T + bias + scale * share * (x @ a.T) @ b.T
    if name == "grad.x":
        return bar @ w + scale * share * bar @ b @ a
    x, bar = x.flatten(0, 1), bar.flatten(0, 1)
    return scale * share * ((bar @ b).T @ x if name.endswith("lora_a") else bar.T @ (x @ a.T))


@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_those_of_the_function(dropped: bool) -> None:
    keep = torch.rand(TOKENS, INNER, generator=torch.Generator().manual_seed(9)) < 0.75 if dropped else None
    weight = drawn(OUTER, INNER, seed=1)

    def function(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return fused_lora(x, a, b, None, weight=lambda: weight, scale=1.7, keep=keep, dropout=0.25 if dropped else 0.0)

    inputs = [drawn(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(((TOKENS, INNER), (RANK, INNER), (OUTER, RANK)))]
    assert torch.autograd.gradcheck(function, inputs)


def test_no_weight_is_kept_for_the_backward_pass() -> None:
    """Kept are x, A, B and s A x."""
    kept: list[tuple[int, ...]] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    model = module_of(torch.float32, fused=True, base="nf4")
    x = drawn(SEQUENCES, TOKENS, INNER, seed=5, dtype=torch.float32).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.get_submodule(PATH)(x)
    assert sorted(kept) == sorted([(SEQUENCES, TOKENS, INNER), (RANK, INNER), (OUTER, RANK), (SEQUENCES * TOKENS, RANK)])


def test_with_b_of_zero_it_is_the_base_and_a_gets_no_gradient() -> None:
    model = module_of(torch.float32, fused=True, base="nf4")
    with torch.no_grad():
        lora.parameters(model)[f"{PATH}.lora_b"].zero_()
    got = passed(model, torch.float32, dropped=True)
    x = drawn(SEQUENCES, TOKENS, INNER, seed=5, dtype=torch.float32)
    base = model.get_submodule(PATH).base_layer
    expected = torch.nn.functional.linear(x.flatten(0, 1), base.dequantized(), base.bias)
    assert got["y"].numpy().tobytes() == expected.numpy().tobytes()
    assert not got[f"grad.{PATH}.lora_a"].any()
    assert got[f"grad.{PATH}.lora_b"].any()


@pytest.mark.parametrize("fused", [False, True])
def test_patterns_reach_the_linear_that_they_name(fused: bool) -> None:
    """A linear's own rank and alpha win over its kind's; layers.1 is not layers.11."""
    paths = [f"layers.{layer}.{name}" for layer in (1, 11) for name in ("q_proj", "k_proj")]
    plan = Lora(
        rank=2, alpha=6.0, rslora=True, rank_pattern={"k_proj": 3, "layers.1.k_proj": 4}, alpha_pattern={"layers.11.q_proj": 5.0}
    )  # fmt: skip
    blocks = {
        layer: nn.ModuleDict({name: FrozenLinear(drawn(5, 6, seed=1), None) for name in ("q_proj", "k_proj")}) for layer in ("1", "11")
    }
    model = nn.ModuleDict({"layers": nn.ModuleDict(blocks)})
    adapter: dict[str, Any] = {}
    for path in paths:
        adapter |= {f"{path}.lora_a": drawn(plan.rank_of(path), 6, seed=2), f"{path}.lora_b": drawn(5, plan.rank_of(path), seed=3)}
    lora.inject(model, plan, adapter, fused=fused)
    assert [plan.rank_of(path) for path in paths] == [2, 4, 2, 3]
    for path in paths:
        module = model.get_submodule(path)
        assert module.scaling == {lora.ADAPTER: plan.scaling_of(path)}
        assert module.r == {lora.ADAPTER: plan.rank_of(path)}
        x = drawn(4, 6, seed=4)
        expected = x @ drawn(5, 6, seed=1).T + plan.scaling_of(path) * x @ adapter[f"{path}.lora_a"].T @ adapter[f"{path}.lora_b"].T
        np.testing.assert_allclose(module(x).detach().numpy(), expected.numpy(), rtol=0, atol=32 * 2**-53 * 64)
