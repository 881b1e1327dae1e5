"""The graph's pieces against their formulas in extended precision, its taps, its laws, and what it holds."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from contract.worker import graph, taps
from contract.worker.plan import Lora, Nf4
from stacks.torch_qlora.graph import Graph, Taps
from stacks.torch_qlora.models import llama
from tests.stacks.torch_qlora.tiny_torch_graph import (
    GRAPH,
    LAYOUT,
    TOKENS,
    all_taps,
    batch,
    draw,
    gamma,
    gradients,
    opened,
    plan,
    unit,
    weights,
)

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


# Pieces


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_its_formula_in_its_own_dtype(dtype: str) -> None:
    x, weight = draw(2, 5, 96).to(DTYPES[dtype]), draw(96, seed=4).to(DTYPES[dtype])
    got = llama.RmsNorm(torch.nn.Parameter(weight, requires_grad=False), LAYOUT.rms_norm_eps)(x)
    wide = x.numpy().astype(np.longdouble)
    exact = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + np.longdouble(LAYOUT.rms_norm_eps)) * weight.numpy()
    # 96 squares and a sum, mean, eps (stored and added), root; division, product: all of them relative, since nothing cancels.
    assert got.dtype == DTYPES[dtype]
    assert np.all(np.abs(got.numpy() - exact) <= gamma(96 + 8, dtype) * np.abs(exact))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_tables_are_cast_once(dtype: str) -> None:
    cos, sin = llama.rope_tables(LAYOUT, TOKENS, DTYPES[dtype], CPU)
    angles = np.outer(np.arange(TOKENS), np.longdouble(LAYOUT.rope_theta) ** (-np.arange(0, 20, 2, dtype=np.longdouble) / 20))
    angles = np.concatenate((angles, angles), axis=1)
    # The exponent's rounding counts log(theta) times, the angle's by its size; then the table's own.
    of_angle = gamma(math.ceil(math.log(LAYOUT.rope_theta)) + 3, "float64") * angles
    for table, exact in ((cos, np.cos(angles)), (sin, np.sin(angles))):
        assert table.dtype == DTYPES[dtype]
        assert table.shape == (TOKENS, 20)
        assert np.all(np.abs(table.numpy() - exact) <= of_angle + 2 * unit(dtype) * np.abs(exact))


def test_rope_turns_each_pair_of_halves_by_its_angle() -> None:
    x = draw(2, 3, TOKENS, 20)
    cos, sin = llama.rope_tables(LAYOUT, TOKENS, torch.float64, CPU)
    got = torch.complex(*llama.rope(x, cos, sin).chunk(2, dim=-1))
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.complex(cos[:, :10], sin[:, :10])
    assert bool((torch.abs(got - turned) <= gamma(4, "float64") * torch.abs(turned) * math.sqrt(2)).all())
    assert torch.equal(got[:, :, 0], torch.complex(*x[:, :, 0].chunk(2, dim=-1)))


def test_softmax_is_causal_exactly_and_sums_to_one() -> None:
    scores = 50 * draw(2, 6, TOKENS, TOKENS)
    weights_BHTS = llama.causal_softmax(scores)
    assert not torch.triu(weights_BHTS, diagonal=1).any()
    assert torch.equal(weights_BHTS[..., 0, 0], torch.ones(2, 6, dtype=torch.float64))
    assert bool(((weights_BHTS.sum(-1) - 1).abs() <= gamma(2 * TOKENS, "float64")).all())
    assert torch.equal(weights_BHTS, llama.causal_softmax(scores + torch.triu(1000 * draw(TOKENS, TOKENS), diagonal=1)))


def test_query_heads_share_key_heads_in_groups_of_neighbours() -> None:
    q, k = draw(2, 6, TOKENS, 20), draw(2, 2, 20, TOKENS, seed=4)
    got = llama.grouped(q, k)
    for head in range(6):
        exact = np.einsum("bte,bes->bts", q[:, head].numpy().astype(np.longdouble), k[:, head // 3].numpy().astype(np.longdouble))
        bound = gamma(20, "float64") * torch.matmul(q[:, head].abs(), k[:, head // 3].abs()).numpy()
        assert np.all(np.abs(got[:, head].numpy() - exact) <= bound)


# Taps


def test_taps_record_what_was_computed_and_answer_the_override() -> None:
    computed, override = draw(3), draw(3, seed=4)
    shown = Taps(keep={"layers.1.scores", "logits"}, overrides={"layers.1.scores": override})
    assert shown.under("layers.1")("scores", computed) is override
    assert shown.under("layers.0")("scores", computed) is computed
    assert shown.under("head")("logits", computed) is computed
    assert {name: torch.equal(value, computed) for name, value in shown.recorded.items()} == {"layers.1.scores": True, "logits": True}


def test_the_first_computation_counts() -> None:
    shown = Taps(keep={"loss"})
    shown.tap("loss", torch.ones(()))
    shown.tap("loss", torch.zeros(()))
    assert shown.recorded["loss"] == 1


def test_a_pass_leaves_no_hook_behind() -> None:
    wanted = plan(paths=("checkpoint",))
    held = Graph(wanted, weights(wanted), CPU)
    shown = Taps(keep={"loss"}, attached={"loss"})
    ids, labels = (torch.from_numpy(tensor) for tensor in batch().values())
    held.full_causal(ids, labels, shown)
    shown.recorded["loss"].backward()  # type: ignore[no-untyped-call]
    assert not any(module._forward_hooks for module in held.modules())


def test_only_the_sections_of_the_plan_are_held() -> None:
    wanted = plan(sections=("layers.2",))
    held = Graph(wanted, weights(wanted), CPU)
    assert list(held.layers) == ["2"]
    assert held.embedding is None
    assert held.head is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embeddings_own_parameter(tied: bool) -> None:
    wanted = plan(layout={"tie_word_embeddings": tied})
    held = Graph(wanted, weights(wanted), CPU)
    assert held.embedding is not None
    assert held.head is not None
    assert (held.head.weight is held.embedding.weight) == tied


def test_a_float64_graph_holds_no_float32() -> None:
    wanted = plan(base=Nf4())
    held = Graph(wanted, weights(wanted), CPU)
    assert {parameter.dtype for parameter in held.parameters()} == {torch.float64}
    assert {name for name, parameter in held.named_parameters() if parameter.requires_grad} == {
        f"layers.{layer}.{linear}.lora_{matrix}.default.weight" for layer in range(3) for linear in taps.LINEARS for matrix in "AB"
    }


# Laws


def test_a_later_token_changes_no_earlier_value() -> None:
    stack, first = opened(plan()), batch()
    changed = {"ids": first["ids"].copy(), "labels": first["labels"]}
    changed["ids"][:, 9] = (changed["ids"][:, 9] + 1) % LAYOUT.vocab_size
    one, other = (stack.forward(GRAPH, ["logits"], tensors).tensors["logits"] for tensors in (first, changed))
    assert one[:, :9].tobytes() == other[:, :9].tobytes()
    assert np.all((one[:, 9:] != other[:, 9:]).any(axis=2))


def test_an_adapter_with_b_zero_is_the_base_and_its_a_gets_no_gradient() -> None:
    wanted, bare = plan(), plan(lora=Lora(rank=4, alpha=10, targets=()))
    tensors = {name: np.zeros_like(tensor) if name.endswith("lora_b") else tensor for name, tensor in weights(wanted).items()}
    got = gradients(wanted, tensors)
    base = gradients(bare, {name: tensor for name, tensor in tensors.items() if "lora" not in name})
    assert got["logits"].tobytes() == base["logits"].tobytes()
    for name in graph.adapter(wanted):
        assert got[f"grad.{name}"].any() == name.endswith("lora_b"), name


@pytest.mark.parametrize(
    "changed",
    [{"rms_norm_eps": 0.02}, {"rope_theta": 6000.0}, {"num_key_value_heads": 3}, {"attention_bias": False}, {"mlp_bias": False}],
    ids=lambda changed: next(iter(changed)),
)
def test_each_field_of_the_layout_changes_the_function(changed: dict[str, Any]) -> None:
    wanted = plan(layout=changed)
    tensors = weights(plan())
    for name, (shape, _) in graph.weights(wanted).items() | graph.adapter(wanted).items():
        tensors[name] = np.resize(tensors[name], shape)
    kept = {name: tensor for name, tensor in tensors.items() if name in graph.weights(wanted) | graph.adapter(wanted)}
    assert gradients(wanted, kept)["loss"] != gradients(plan())["loss"]


def test_opening_in_float64_keeps_no_float32_copy() -> None:
    wanted = plan(layout={"vocab_size": 30000})
    tensors = weights(wanted)
    narrow = sum(tensor.nbytes for tensor in tensors.values())
    tracemalloc.start()
    Graph(wanted, tensors, CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * narrow
    assert len(all_taps(wanted)) == len(taps.full_names(3, wanted.targets))
