"""The requests on a graph: what each one answers, what an override cuts, what is refused and in which words."""

from __future__ import annotations

import gc
import re
import sys
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from contract.worker import graph, taps
from contract.worker.plan import GraphPlan, Lora, Nf4
from contract.worker.process import Mutation, StackProcess
from contract.worker.stack import NotSupported
from stacks.torch_qlora import graph as graph_module
from stacks.torch_qlora import session
from stacks.torch_qlora.ops import TorchQlora
from tests.stacks.torch_qlora.tiny_torch_graph import (
    BATCH,
    GRAPH,
    TOKENS,
    all_taps,
    batch,
    everything_given,
    gradients,
    opened,
    plan,
    scaling,
    weights,
)

SOME = ("q_proj", "down_proj")
PLANS = {
    "plain64": plan(),
    "plain32": plan("float32"),
    "checkpoint": plan(paths=("checkpoint",)),
    "chunked": plan(paths=("chunked_loss", "checkpoint")),
    "nf4": plan(base=Nf4()),
    "nf4_linear": plan("float32", base=Nf4(), paths=("nf4_linear",)),
    "few_targets_tied": plan(layout={"tie_word_embeddings": True}, lora=Lora(rank=3, alpha=7, rslora=True, targets=SOME)),
    "no_targets": plan(layout={"attention_bias": False}, lora=Lora(rank=3, alpha=7, targets=())),
}


def spelled(tensors: dict[str, np.ndarray]) -> graph.Expected:
    return {name: (tensor.shape, tensor.dtype.name) for name, tensor in tensors.items()}


@pytest.mark.parametrize("wanted", PLANS.values(), ids=PLANS)
def test_every_answer_is_what_the_contract_expects(wanted: GraphPlan) -> None:
    stack = opened(wanted)
    names = all_taps(wanted)
    got = stack.gradients(GRAPH, names, batch()).tensors
    assert spelled(got) == graph.expected_graph_answer(wanted, names, BATCH, TOKENS, gradients=True)
    assert all(np.isfinite(tensor).all() for tensor in got.values())
    assert all(tensor.any() for tensor in got.values())
    assert spelled(stack.forward(GRAPH, names[:5], batch()).tensors) == graph.expected_graph_answer(
        wanted, names[:5], BATCH, TOKENS, gradients=False
    )
    for section in wanted.held:
        tensors = everything_given(wanted, section)
        for kept in ("", "override.", "bar."):
            asked = {name: tensor for name, tensor in tensors.items() if not kept or not name.startswith(kept)}
            answer = stack.block(GRAPH, section, asked).tensors
            assert spelled(answer) == graph.expected_block_answer(wanted, section, asked, BATCH, TOKENS)


@pytest.mark.parametrize("wanted", [PLANS["plain64"], PLANS["nf4_linear"]], ids=["float64", "float32"])
def test_the_same_request_gives_the_same_bits(wanted: GraphPlan) -> None:
    first, second = gradients(wanted), gradients(wanted)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


def test_forward_and_gradients_agree_bit_for_bit() -> None:
    wanted = plan()
    shown = opened(wanted).forward(GRAPH, all_taps(wanted), batch()).tensors
    for name, tensor in gradients(wanted).items():
        assert name.startswith("grad.") or tensor.tobytes() == shown[name].tobytes(), name


def test_blocks_one_after_the_other_are_the_graph() -> None:
    """Each section on what the one before gave, and backwards each on what the one after sent: the same bits as the whole."""
    wanted, stack = plan(), opened(plan())
    whole = stack.gradients(GRAPH, all_taps(wanted), batch()).tensors
    sections = wanted.held
    inputs = {"head": whole["layers.2.output"], "layers.2": whole["layers.1.output"], "layers.1": whole["layers.0.output"]}
    inputs["layers.0"] = whole["embedding"]
    tensors = {"input": inputs["head"], "labels": batch()["labels"], "bar.loss": np.ones((), np.float64)}
    answer = stack.block(GRAPH, "head", tensors).tensors
    assert answer["loss"].tobytes() == whole["loss"].tobytes()
    for section in reversed(sections[1:-1]):
        answer = stack.block(GRAPH, section, {"input": inputs[section], "bar.output": answer["grad.input"]}).tensors
        for tap in taps.section_taps(wanted, section):
            assert answer[tap.name].tobytes() == whole[f"{section}.{tap.name}"].tobytes(), tap.name
        for name in [name for name in graph.adapter(wanted) if name.startswith(f"{section}.")]:
            own = name.removeprefix(f"{section}.")
            assert answer[f"grad.{own}"].tobytes() == whole[f"grad.{name}"].tobytes(), name


def test_a_section_alone_answers_as_in_the_whole_graph() -> None:
    wanted = plan(sections=("layers.1",))
    tensors = {name: tensor for name, tensor in weights(plan()).items() if name.startswith("layers.1.")}
    asked = everything_given(wanted, "layers.1")
    alone = opened(wanted, tensors).block(GRAPH, "layers.1", asked).tensors
    whole = opened(plan()).block(GRAPH, "layers.1", asked).tensors
    assert all(alone[name].tobytes() == whole[name].tobytes() for name in whole)


def test_an_override_is_taken_and_the_tap_is_answered_as_computed() -> None:
    stack, asked = opened(plan()), everything_given(plan(), "layers.0")
    free = stack.block(GRAPH, "layers.0", {"input": asked["input"]}).tensors
    cut = stack.block(GRAPH, "layers.0", {"input": asked["input"], "override.context": asked["override.context"]}).tensors
    names = [tap.name for tap in taps.section_taps(plan(), "layers.0")]
    after = names.index("context") + 1
    assert all(cut[name].tobytes() == free[name].tobytes() for name in names[:after])
    assert all(cut[name].tobytes() != free[name].tobytes() for name in names[after:])


@pytest.mark.parametrize("name", ["q_proj.base", "q_proj.lora_ax", "q_proj.lora_bax", "q_proj"])
def test_the_taps_inside_of_pefts_forward_are_overridden_there(name: str) -> None:
    stack, asked = opened(plan()), everything_given(plan(), "layers.0")
    tensors = {"input": asked["input"]} | {
        f"override.{part}": asked[f"override.{part}"] for part in ("q_proj.base", "q_proj.lora_bax", "q_proj.lora_ax", "q_proj")
    }
    got = stack.block(GRAPH, "layers.0", tensors).tensors
    scaled = asked["override.q_proj.lora_bax"] * scaling(plan().lora)
    np.testing.assert_array_equal(got["q_proj"], asked["override.q_proj.base"] + scaled)
    del tensors[f"override.{name}"]
    less = stack.block(GRAPH, "layers.0", tensors).tensors
    follows = {"q_proj.lora_ax": "q_proj.lora_bax", "q_proj": "q_rope"}.get(name, "q_proj")
    assert less[follows].tobytes() != got[follows].tobytes()
    assert less[name].tobytes() == got[name].tobytes()


def test_gradients_stop_at_overrides() -> None:
    """With every tap overridden each gradient is one operation's: here those that need no arithmetic, or none at all."""
    asked = everything_given(plan(), "layers.2")
    got = opened(plan()).block(GRAPH, "layers.2", asked).tensors
    assert not got["grad.output"].any()
    np.testing.assert_array_equal(got["grad.down_proj"], asked["bar.output"])
    np.testing.assert_array_equal(got["grad.q_proj.base"], asked["bar.q_proj"])
    np.testing.assert_array_equal(got["grad.q_proj.lora_bax"], asked["bar.q_proj"] * scaling(plan().lora))
    np.testing.assert_array_equal(got["grad.activation"], asked["bar.gated"] * asked["override.up_proj"])
    np.testing.assert_array_equal(got["grad.o_proj"], asked["bar.attention_residual"])
    bar, ax = (asked[name].reshape(BATCH * TOKENS, -1) for name in ("bar.k_proj.lora_bax", "override.k_proj.lora_ax"))
    wide = bar.T.astype(np.longdouble) @ ax.astype(np.longdouble)
    gamma = BATCH * TOKENS * 2.0**-53 / (1 - BATCH * TOKENS * 2.0**-53)
    assert np.all(np.abs(got["grad.k_proj.lora_b"] - wide) <= gamma * (np.abs(bar).T @ np.abs(ax)))


def test_gradient_is_zero_where_nothing_with_a_cotangent_follows() -> None:
    asked = everything_given(plan(), "layers.1")
    tensors = {name: asked[name] for name in ("input", "override.gated", "bar.context")}
    got = opened(plan()).block(GRAPH, "layers.1", tensors).tensors
    assert not got["grad.gated"].any()
    for linear in taps.LINEARS:
        reached = linear in ("q_proj", "k_proj", "v_proj")
        assert got[f"grad.{linear}.lora_a"].any() == got[f"grad.{linear}.lora_b"].any() == reached, linear


def test_rope_tables_may_be_given_and_get_no_gradient() -> None:
    stack, asked = opened(plan()), everything_given(plan(), "layers.1")
    tables = {f"override.{name}": stack.block(GRAPH, "embedding", {"ids": batch()["ids"]}).tensors[name] for name in graph.ROPE_TABLES}
    own = stack.block(GRAPH, "layers.1", asked).tensors
    assert own.keys() == stack.block(GRAPH, "layers.1", asked | tables).tensors.keys()
    free = {"input": asked["input"]}
    turned = {name: np.roll(table, 1, axis=0) for name, table in tables.items()}
    same, other = (stack.block(GRAPH, "layers.1", free | given).tensors["q_rope"] for given in (tables, turned))
    np.testing.assert_array_equal(same, stack.block(GRAPH, "layers.1", free).tensors["q_rope"])
    assert (same != other).any()


def test_weights_may_be_read_only_and_bfloat16() -> None:
    wanted = plan()
    narrow = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in weights(wanted).items()}
    for tensor in narrow.values():
        tensor.setflags(write=False)
    wide = {name: tensor.astype(np.float32) for name, tensor in narrow.items()}
    first, second = gradients(wanted, narrow), gradients(wanted, wide)
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_state_sets_and_answers_the_whole_adapter(dtype: str) -> None:
    wanted, stack = plan(dtype), opened(plan(dtype))
    other = {name: tensor for name, tensor in weights(wanted, seed=7).items() if name in graph.adapter(wanted)}
    before = stack.state(GRAPH).tensors
    kept = {name: tensor.copy() for name, tensor in before.items()}
    stack.state(GRAPH, other)
    assert all(before[name].tobytes() == kept[name].tobytes() for name in before)
    after = stack.state(GRAPH).tensors
    assert spelled(after) == graph.adapter(wanted)
    assert all(after[name].tobytes() == other[name].tobytes() for name in other)
    fresh = gradients(wanted, weights(wanted) | other)
    moved = stack.gradients(GRAPH, all_taps(wanted), batch()).tensors
    assert all(moved[name].tobytes() == fresh[name].tobytes() for name in fresh)


def test_state_of_a_part_is_refused() -> None:
    part = {"layers.0.q_proj.lora_a": np.zeros((4, 96), np.float32)}
    with pytest.raises(ValueError, match=r"state: .* is missing"):
        opened(plan()).state(GRAPH, part)


def test_opening_replaces_the_graph_that_was_open() -> None:
    stack, other = opened(plan()), plan("float32", layout={"hidden_size": 80})
    stack.open("other", other.model_dump(mode="json"), weights(other))
    assert stack.forward("other", ["embedding"], batch()).tensors["embedding"].shape == (BATCH, TOKENS, 80)
    with pytest.raises(ValueError, match=r"graph 'tiny' is asked for, open is 'other'; .* open 'tiny' first"):
        stack.forward(GRAPH, ["loss"], batch())


def test_two_graphs_are_never_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, alive = opened(plan()), []
    first = weakref.ref(stack._session._graph)

    def watched(*arguments: Any) -> session.AnyGraph:
        gc.collect()
        alive.append(first())
        return graph_module.open_graph(*arguments)

    monkeypatch.setattr(session, "open_graph", watched)
    stack.open("other", plan().model_dump(mode="json"), weights(plan()))
    assert alive == [None]


@pytest.mark.parametrize(
    ("request_name", "arguments"),
    [("state", {}), ("forward", {"taps": [], "tensors": {}}), ("gradients", {"taps": [], "tensors": {}}),
     ("block", {"section": "head", "tensors": {}})],
)  # fmt: skip
def test_nothing_is_answered_before_open(request_name: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="graph 'tiny' is asked for, and none is open; open it first"):
        getattr(TorchQlora("CPU"), request_name)(GRAPH, **arguments)


def test_a_refused_open_leaves_the_open_graph() -> None:
    stack = opened(plan())
    with pytest.raises(ValueError, match="embedding is missing"):
        stack.open("other", plan().model_dump(mode="json"), {})
    assert stack.forward(GRAPH, ["loss"], batch()).tensors["loss"] > 0


def without(name: str) -> dict[str, np.ndarray]:
    return {key: tensor for key, tensor in batch().items() if key != name}


@pytest.mark.parametrize(
    ("request_name", "names", "tensors", "message"),
    [
        ("gradients", [], without("labels"), "gradients: labels are missing, and the loss needs them"),
        ("forward", ["loss"], without("labels"), "forward: labels are missing"),
        ("forward", ["logits"], without("ids"), "forward: got the tensors ['labels'], must be ids, labels where"),
        ("forward", ["logits"], batch() | {"mask": np.ones(1)}, "got the tensors ['ids', 'labels', 'mask']"),
        ("forward", ["layers.3.output"], batch(), "there is no tap 'layers.3.output'"),
        ("forward", ["logits"], {"ids": np.full((1, 3), 97)}, "ids lie in 97 .. 97, allowed: 0 .. 96"),
        ("forward", ["logits"], {"ids": np.zeros((1, 30), np.int64)}, "30 tokens a sequence"),
    ],
)
def test_requests_on_the_whole_graph_are_held_against_it(
    request_name: str, names: list[str], tensors: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        getattr(opened(plan()), request_name)(GRAPH, names, tensors)


def test_forward_without_labels_gives_logits() -> None:
    stack = opened(plan())
    got = stack.forward(GRAPH, ["logits"], without("labels")).tensors["logits"]
    assert got.tobytes() == stack.forward(GRAPH, ["logits"], batch()).tensors["logits"].tobytes()


def test_the_whole_graph_is_not_asked_of_a_part() -> None:
    part = plan(sections=("layers.0", "head"))
    with pytest.raises(ValueError, match=r"gradients: the open graph holds only layers.0, head .*; ask for block, or open it without"):
        opened(part).gradients(GRAPH, [], batch())


@pytest.mark.parametrize("request_name", ["forward", "gradients"])
def test_logits_of_the_chunked_loss_are_refused_by_name(request_name: str) -> None:
    stack = opened(plan(paths=("chunked_loss",)))
    with pytest.raises(ValueError, match="the path chunked_loss never holds the tap logits"):
        getattr(stack, request_name)(GRAPH, ["loss", "logits"], batch())
    with pytest.raises(ValueError, match=r"block head: there is no tensor '(bar|override).logits'"):
        stack.block(GRAPH, "head", everything_given(plan(), "head"))


def test_nf4_linear_in_float64_and_unknown_block_sizes_are_refused_by_name() -> None:
    wide, odd = plan(base=Nf4(), paths=("nf4_linear",)), plan(base=Nf4(block_size=48))
    with pytest.raises(NotSupported, match="path nf4_linear in float32 and bfloat16 only, not in float64"):
        opened(wide)
    with pytest.raises(ValueError, match="block_size is 48; allowed: 32, 64"):
        opened(odd)


def test_the_pipe_changes_no_bit_and_a_planted_bug_reaches_the_graph() -> None:
    wanted = plan("float32")
    values = {"graph": GRAPH, "plan": wanted.model_dump(mode="json")}
    asked = {"graph": GRAPH, "taps": all_taps(wanted)}
    bug = Mutation("stacks.torch_qlora.attention", "/ math.sqrt(q_BHTE.shape[-1])", "/ q_BHTE.shape[-1]")
    answers = []
    for bugs in ([], [bug]):
        with StackProcess("torch_qlora", (sys.executable, "-m", "stacks.torch_qlora.worker"), "CPU", mutations=bugs) as process:
            assert process.request("open", values, weights(wanted)).tensors == {}
            answers.append(process.request("gradients", asked, batch()).tensors)
            assert process.log_tail() == ""
    got, wrong = answers
    here = gradients(wanted)
    assert all(got[name].tobytes() == here[name].tobytes() for name in here)
    assert got["layers.0.k_rope"].tobytes() == wrong["layers.0.k_rope"].tobytes()
    assert got["layers.0.scores"].tobytes() != wrong["layers.0.scores"].tobytes()
