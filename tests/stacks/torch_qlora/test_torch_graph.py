"""The graph's pieces against their formulas in extended precision, its taps, its laws, and what it holds."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch

from contract.worker import graph, taps
from contract.worker.plan import Lora, Nf4
from stacks.torch_qlora.graph import Graph, GraphBatch
from stacks.torch_qlora.taps import Taps
from tests.stacks.torch_qlora.tiny_torch_graph import (
    GRAPH,
    LAYOUT,
    all_taps,
    batch,
    draw,
    gradients,
    opened,
    plan,
    weights,
)

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "float64": torch.float64}


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
    held = Graph(wanted, weights(wanted), weights(wanted), CPU)
    shown = Taps(keep={"loss"}, attached={"loss"})
    ids, labels = (torch.from_numpy(tensor) for tensor in batch().values())
    held.whole(GraphBatch(ids_BT=ids, labels_BT=labels), shown)
    shown.recorded["loss"].backward()  # type: ignore[no-untyped-call]
    assert not any(module._forward_hooks for module in held.modules())


def test_only_the_sections_of_the_plan_are_held() -> None:
    wanted = plan(sections=("layers.2",))
    held = Graph(wanted, weights(wanted), weights(wanted), CPU)
    assert list(held.layers) == ["2"]
    assert held.embedding is None
    assert held.head is None


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_head_is_the_embeddings_own_parameter(tied: bool) -> None:
    wanted = plan(layout={"tie_word_embeddings": tied})
    held = Graph(wanted, weights(wanted), weights(wanted), CPU)
    assert held.embedding is not None
    assert held.head is not None
    assert (held.head.weight is held.embedding.weight) == tied


def test_a_float64_graph_holds_no_float32() -> None:
    wanted = plan(base=Nf4())
    held = Graph(wanted, weights(wanted), weights(wanted), CPU)
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
    Graph(wanted, tensors, tensors, CPU)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * narrow
    assert len(all_taps(wanted)) == len(taps.full_names(wanted))
