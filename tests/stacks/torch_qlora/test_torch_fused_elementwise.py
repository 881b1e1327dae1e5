"""RMSNorm and SwiGLU as one operation of autograd each, against the plain ones and their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from stacks.torch_qlora.activation import silu
from stacks.torch_qlora.fused_elementwise import fused_rms_norm, fused_swiglu
from stacks.torch_qlora.graph import Graph
from stacks.torch_qlora.norm import RmsNorm, rms_norm
from tests.stacks.torch_qlora.tiny_architectures import plan
from tests.stacks.torch_qlora.tiny_torch_graph import weights

ROWS, WIDTH, EPS = (2, 3), 48, 0.05
"""eps as large as shows where it stands."""

Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def drawn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def passed(function: Function, a: torch.Tensor, b: torch.Tensor, bar: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = [tensor for tensor in (a, b) if tensor.requires_grad]
    y = function(a, b)
    return {"y": y.detach(), **{f"grad {index}": grad for index, grad in enumerate(torch.autograd.grad(y, leaves, bar))}}


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return fused_rms_norm(x, weight, EPS)


def plain_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rms_norm(x, weight, eps=EPS)


def plain_swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


def test_the_norms_gradient_is_its_derivative() -> None:
    weight = drawn(2, WIDTH)
    assert torch.autograd.gradcheck(lambda x: norm(x, weight), drawn(1, *ROWS, WIDTH).requires_grad_())


def test_swiglus_gradients_are_its_derivatives() -> None:
    assert torch.autograd.gradcheck(fused_swiglu, [drawn(seed, *ROWS, WIDTH).requires_grad_() for seed in (1, 2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_norm_is_the_plain_one(dtype: torch.dtype) -> None:
    """Within the roundings of either: of sums over a row in float32, and of the result."""
    x, weight, bar = drawn(1, *ROWS, WIDTH, dtype=dtype).requires_grad_(), drawn(2, WIDTH, dtype=dtype), drawn(3, *ROWS, WIDTH, dtype=dtype)
    ours, plain = passed(norm, x, weight, bar), passed(plain_norm, x, weight, bar)
    wide = passed(plain_norm, x.detach().double().requires_grad_(), weight.double(), bar.double())
    g = (bar.double() * weight.double()).abs()
    x_hat = x.detach().double().abs() / (x.detach().double().square().mean(-1, keepdim=True) + EPS).sqrt()
    sizes = {"y": x_hat * weight.double().abs(), "grad 0": (g + x_hat * (g * x_hat).mean(-1, keepdim=True)) / EPS**0.5}
    unit = 2 * (WIDTH + 8) * 2.0**-24 + (torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0)
    for name, exact in wide.items():
        assert ours[name].dtype == plain[name].dtype == dtype
        for got in (ours, plain):
            assert bool(((got[name].double() - exact).abs() <= unit * sizes[name]).all()), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_swiglu_is_the_plain_one_bit_for_bit(dtype: torch.dtype) -> None:
    """The operations are the same, in the same order; only what is kept differs."""
    gate, up = (drawn(seed, *ROWS, WIDTH, dtype=dtype).requires_grad_() for seed in (1, 2))
    bar = drawn(3, *ROWS, WIDTH, dtype=dtype)
    ours, plain = passed(fused_swiglu, gate, up, bar), passed(plain_swiglu, gate, up, bar)
    assert all(torch.equal(ours[name], plain[name]) for name in plain)
    assert len(plain) == 3


def test_only_the_inputs_are_kept() -> None:
    kept: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    x, gate, up = (drawn(seed, *ROWS, WIDTH).requires_grad_() for seed in (1, 2, 3))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm(x, drawn(4, WIDTH))
        fused_swiglu(gate, up)
    rows = ROWS[0] * ROWS[1]
    assert sorted(kept) == sorted([rows * WIDTH, WIDTH, rows, rows * WIDTH, rows * WIDTH])


def test_a_graph_on_the_path_takes_both_everywhere() -> None:
    wanted = plan("qwen3", "float32", paths=("fused_elementwise",))
    graph = Graph(wanted, weights(wanted), weights(wanted), torch.device("cpu"))
    norms = [module for module in graph.modules() if isinstance(module, RmsNorm)]
    assert len(norms) == 2 * 4 + 1  # two of a layer's stream, two of its heads, and the last one
    made = {norm(torch.ones(1, len(norm.weight), requires_grad=True)).grad_fn.name() for norm in norms}
    assert made == {fused_rms_norm(torch.ones(1, 1, requires_grad=True), torch.ones(1), EPS).grad_fn.name()}
    assert all(block.fused_elementwise for block in graph.layers.values())
