"""Graphs in bfloat16: what is held and answered in which dtype, and how precise each kind of operation is on its own inputs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Nf4
from stacks.torch_qlora import lora
from stacks.torch_qlora.graph import Graph
from tests.stacks.torch_qlora.tiny_architectures import LAYOUTS, ONE_EACH, batch, plan
from tests.stacks.torch_qlora.tiny_torch_graph import GRAPH, gamma, opened, weights

U = 2.0**-8
"""The unit roundoff of bfloat16."""


def rounded(tensors: dict[str, np.ndarray], wanted: GraphPlan) -> dict[str, np.ndarray]:
    """The weights as a bfloat16 graph holds them; the adapter as it is."""
    base = graph.weights(wanted)
    return {name: array.astype(ml_dtypes.bfloat16).astype(np.float32) if name in base else array for name, array in tensors.items()}


def answers(name: str, **more: Any) -> dict[str, np.ndarray]:
    """Every tap and gradient, as float64."""
    wanted = plan(name, "bfloat16", **more)
    found = opened(wanted, weights(wanted)).gradients(GRAPH, taps.full_names(wanted), batch()).tensors
    return {tap: array.astype(np.float64) for tap, array in found.items()}


@pytest.mark.parametrize("paths", [(), ("fused_attention", "chunked_loss", "checkpoint")], ids=["plain", "paths"])
@pytest.mark.parametrize("name", ONE_EACH)
def test_every_answer_has_the_dtype_that_the_contract_says(name: str, paths: tuple[str, ...]) -> None:
    wanted = plan(name, "bfloat16", paths=paths)
    names = taps.full_names(wanted)
    got = opened(wanted, weights(wanted)).gradients(GRAPH, names, batch()).tensors
    spelled = {tap: (array.shape, array.dtype.name) for tap, array in got.items()}
    assert spelled == graph.expected_graph_answer(wanted, names, *batch()["ids"].shape, gradients=True)
    assert all(np.isfinite(array.astype(np.float64)).all() and array.astype(np.float64).any() for array in got.values())


@pytest.mark.parametrize("base", [None, Nf4(block_size=32)], ids=["plain", "nf4"])
def test_the_base_is_held_in_bfloat16_and_the_adapter_in_float32(base: Nf4 | None) -> None:
    wanted = plan("llama", "bfloat16", base=base)
    held = Graph(wanted, weights(wanted), weights(wanted), torch.device("cpu"))
    masters = {id(parameter) for parameter in lora.parameters(held).values()}
    assert {parameter.dtype for parameter in held.parameters() if id(parameter) not in masters} == {torch.bfloat16}
    assert {parameter.dtype for parameter in held.parameters() if id(parameter) in masters} == {torch.float32}


def split(x_BTQ: np.ndarray, head_dim: int) -> np.ndarray:
    return x_BTQ.reshape(*x_BTQ.shape[:2], -1, head_dim).swapaxes(1, 2)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_products_accumulate_in_float32_and_are_rounded_once(name: str) -> None:
    """|y - x W^T - b| <= u_bf16 |y| + gamma_k(float32) |x| |W|^T, k the inner length and the bias."""
    wanted = plan(name, "bfloat16")
    got, base = answers(name), rounded(weights(wanted), wanted)
    for linear in taps.linears(wanted.layout).values():
        x, y = got[f"layers.1.{linear.input}"], got[f"layers.1.{linear.name}.base"]
        w, b = base[f"layers.1.{linear.name}"].astype(np.float64), base.get(f"layers.1.{linear.name}.bias", np.zeros(1)).astype(np.float64)
        exact, sizes = x @ w.T + b, np.abs(x) @ np.abs(w.T) + np.abs(b)
        assert (np.abs(y - exact) <= U * np.abs(exact) + 2 * gamma(w.shape[1] + 1, "float32") * sizes).all(), linear.name
        assert (y != exact).any()


@pytest.mark.parametrize("name", ONE_EACH)
def test_norms_softmax_and_loss_compute_in_float32(name: str) -> None:
    """From what stands before them each errs by one rounding to bfloat16, the loss by none; float32's own roundings are a thousandth."""
    wanted = plan(name, "bfloat16")
    layout, got, base = wanted.layout, answers(name), rounded(weights(wanted), wanted)
    once = U * (1 + 2.0**-8)
    x, weight = got["layers.0.attention_residual"], base["layers.0.mlp_norm"].astype(np.float64)
    if layout.model_type == "gpt2":
        centred = x - x.mean(-1, keepdims=True)
        bias = base["layers.0.mlp_norm.bias"].astype(np.float64)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.05) * weight
        sizes = np.abs(normed) + np.abs(bias)
        assert (np.abs(got["layers.0.mlp_norm"] - normed - bias) <= once * np.abs(normed + bias) + 2.0**-16 * sizes).all()
    else:
        normed = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.05) * weight
        assert (np.abs(got["layers.0.mlp_norm"] - normed) <= once * np.abs(normed)).all()
    tokens = batch()["ids"].shape[1]
    ahead = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    hidden = (ahead > 0) | (ahead <= -(layout.window(0) or tokens))
    e = np.where(hidden, 0.0, np.exp(got["layers.0.scores"]))
    soft = e / e.sum(-1, keepdims=True)
    assert (np.abs(got["layers.0.weights"] - soft) <= once * soft).all()
    logits, labels = got["logits"][:, :-1], batch()["labels"][:, 1:]
    picked = np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
    losses = (np.log(np.exp(logits).sum(-1)) - picked)[labels != -100]
    assert abs(got["loss"] - losses.mean()) <= 2.0**-16 * np.abs(losses).mean()
    assert LAYOUTS[name].window(0) is None or hidden.sum() > tokens * (tokens - 1) / 2


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_bfloat16_graph_is_its_weights_graph_but_for_roundings(name: str) -> None:
    """Against float64 on the same rounded weights: what float32 errs by there, times 2^16 for the wider roundings, with room for 3."""
    tensors = rounded(weights(plan(name)), plan(name))
    names = taps.full_names(plan(name))
    single, double = (opened(plan(name, dtype), tensors).gradients(GRAPH, names, batch()).tensors for dtype in ("float32", "float64"))
    got = answers(name)
    for kind in (True, False):
        of = [tap for tap in got if tap.startswith("grad.") == kind]
        allowed = 3 * 2**16 * max(float(np.abs(single[tap] - double[tap]).max() / np.abs(double[tap]).max()) for tap in of)
        for tap in of:
            assert np.abs(got[tap] - double[tap]).max() <= allowed * np.abs(double[tap]).max(), tap
