"""The production paths of the graph against its plain one: checkpointing, the chunked loss, NF4."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from contract.worker import graph, taps
from contract.worker.plan import Nf4
from stacks.torch_qlora import nf4
from stacks.torch_qlora.graph import Graph, GraphBatch
from stacks.torch_qlora.nf4_linear import Linear4bit
from stacks.torch_qlora.taps import Taps
from tests.stacks.torch_qlora.tiny_torch_graph import (
    BATCH,
    GRAPH,
    LAYOUT,
    TOKENS,
    batch,
    draw,
    everything_given,
    gradients,
    opened,
    plan,
    unit,
    weights,
)

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@pytest.mark.parametrize("dtype", DTYPES)
def test_checkpointing_changes_no_bit(dtype: str) -> None:
    plain, path = gradients(plan(dtype)), gradients(plan(dtype, paths=("checkpoint",)))
    assert all(plain[name].tobytes() == path[name].tobytes() for name in plain)
    asked = everything_given(plan(dtype), "layers.1")
    free = {name: tensor for name, tensor in asked.items() if not name.startswith("override.")}
    for given in (asked, free):
        one, other = (opened(plan(dtype, paths=paths)).block(GRAPH, "layers.1", given).tensors for paths in ((), ("checkpoint",)))
        assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def test_checkpointing_keeps_no_activations() -> None:
    """What autograd keeps of the whole graph is what it keeps of the head, and each block's input: blocks compute the rest again."""
    ids, labels = (torch.from_numpy(tensor) for tensor in batch().values())
    head = {"input": draw(BATCH, TOKENS, LAYOUT.hidden_size).requires_grad_(), "labels": labels}
    kept: list[int] = []
    for paths in ((), ("checkpoint",)):
        wanted = plan(paths=paths)
        held, sizes = Graph(wanted, weights(wanted), weights(wanted), CPU), Sizes()
        with torch.autograd.graph.saved_tensors_hooks(sizes.pack, lambda tensor: tensor):
            held.whole(GraphBatch(ids_BT=ids, labels_BT=labels), Taps(keep={"loss"}, attached={"loss"}))
        kept.append(sizes.total)
    sizes = Sizes()
    with torch.autograd.graph.saved_tensors_hooks(sizes.pack, lambda tensor: tensor):
        held.run_section("head", head, Taps(keep={"loss"}, attached={"loss"}))
    assert kept[1] == sizes.total + LAYOUT.num_hidden_layers * head["input"].numel() < kept[0]


class Sizes:
    """How many elements autograd saved."""

    def __init__(self) -> None:
        self.total = 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self.total += tensor.numel()
        return tensor


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("block_size", [32, 64])
def test_an_nf4_base_is_its_dequantised_weights(block_size: int, double_quant: bool) -> None:
    """The plain path is the graph of the values that nf4 and its nested absmax stand for, widened exactly, in bfloat16 rounded once."""
    base = Nf4(block_size=block_size, double_quant=double_quant)
    tensors = weights(plan())
    rounded = dict(tensors)
    for name in graph.weights(plan()):
        if name.rpartition(".")[2] in taps.LINEARS:
            rounded[name] = dequantised(tensors[name], block_size, double_quant)
            assert (rounded[name] != tensors[name]).any()
    for dtype in (*DTYPES, "bfloat16"):
        got, expected = gradients(plan(dtype, base=base), tensors), gradients(plan(dtype), rounded)
        assert all(got[name].tobytes() == expected[name].tobytes() for name in expected)


def dequantised(weight: np.ndarray, block_size: int, double_quant: bool) -> np.ndarray:
    quantized = nf4.quantize(torch.from_numpy(weight), block_size)
    if double_quant:
        mean = nf4.offset(quantized.absmax)
        quantized = nf4.Quantized(packed=quantized.packed, absmax=nf4.unnest(*nf4.nest(quantized.absmax, mean), mean))
    shape = {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    return nf4.dequantize(quantized, block_size=block_size, **shape).numpy()


@pytest.mark.parametrize("double_quant", [True, False])
def test_nf4_linear_is_the_plain_path_but_for_the_order_of_sums(double_quant: bool) -> None:
    base = Nf4(block_size=32, double_quant=double_quant)
    plain, path = gradients(plan("float32", base=base)), gradients(plan("float32", base=base, paths=("nf4_linear",)))
    wide = gradients(plan("float64", base=base))
    for name, exact in wide.items():
        own_error = np.abs(plain[name] - exact).max()
        assert np.abs(path[name] - exact).max() <= 2 * own_error + unit("float32") * np.abs(exact).max(), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nf4_weights_are_held_as_codes(dtype: str) -> None:
    wanted = plan(dtype, base=Nf4(), paths=("nf4_linear",))
    held = Graph(wanted, weights(wanted), weights(wanted), CPU)
    linears = [module for module in held.modules() if isinstance(module, Linear4bit)]
    assert len(linears) == 3 * len(taps.LINEARS)
    for linear in linears:
        assert linear.weight.dtype == torch.uint8
        assert linear.weight.numel() == linear.in_features * linear.out_features / 2
        codes, nested_absmax, mean = linear.absmax
        assert (codes.dtype, nested_absmax.dtype, mean.ndim) == (torch.uint8, torch.float32, 0)
