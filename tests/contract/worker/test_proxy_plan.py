"""The proxy graph in the contract: its plan, its sections and taps, what it is opened with, and where its adapter starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contract.model import adapter_init
from contract.worker import graph, taps
from contract.worker.graph import Invalid
from contract.worker.plan import GraphPlan, Lora, Nf4
from tests.contract.worker.small_plan import B, T, ids, labels, layout
from tests.contract.worker.small_plan import plan as causal

SQUARE = {"num_attention_heads": 7, "num_key_value_heads": 1, "head_dim": 2}


def plan(**changed: Any) -> GraphPlan:
    """D 14, V 41, R 3; of a layout of four layers."""
    sizes = {**SQUARE, "num_hidden_layers": 4, **changed.pop("layout", {})}
    value = {"graph": "qlora_proxy_v1", "layout": layout(**sizes), "dtype": "float64", "lora": Lora(rank=3, alpha=5)}
    return GraphPlan.model_validate(value | changed)


def lora(**changed: Any) -> Lora:
    return Lora(**{"rank": 3, "alpha": 5, **changed})


# The plan


@given(blocks=st.none() | st.integers(0, 4))
def test_so_many_of_the_first_layers_are_blocks(blocks: int | None) -> None:
    wanted, count = plan(middle_blocks=blocks), 4 if blocks is None else blocks
    assert wanted.blocks == count
    assert wanted.held == ("embedding", *(f"layers.{layer}" for layer in range(count)), "head")
    assert wanted.targets == ({"o_proj", "lm_head"} if count else {"lm_head"})
    assert GraphPlan.model_validate_json(wanted.model_dump_json()) == wanted


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"middle_blocks": 5}, "middle_blocks is 5; allowed: num_hidden_layers = 4 at most"),
        ({"middle_blocks": -1}, "greater than or equal to 0"),
        ({"lora": lora(targets=("o_proj",))}, "targets with graph qlora_proxy_v1, whose linears all have LoRA"),
        ({"layout": {"head_dim": 4}}, r"o_proj is \[14, 28\].*a square one .*middle_blocks 0"),
        (
            {"lora": lora(rank_pattern={"q_proj": 2})},
            r"rank_pattern names 'q_proj'; allowed: a target \(lm_head, o_proj\), or one of layers.0",
        ),
        ({"lora": lora(alpha_pattern={"layers.4.o_proj": 2.0})}, r"layers.0 .. layers.3 and a target, such as layers.0.o_proj"),
        ({"lora": lora(rank_pattern={"layers.0.lm_head": 2})}, "rank_pattern names 'layers.0.lm_head'"),
        ({"lora": lora(rank_pattern={"o_proj": 2}), "middle_blocks": 0}, r"allowed: a target \(lm_head\) \["),
        ({"sections": ("layers.2",), "middle_blocks": 2}, "allowed: one or more of embedding, layers.0 .. layers.1, head"),
        ({"sections": ("layers.0",), "middle_blocks": 0}, "allowed: one or more of embedding, head"),
    ],
)
def test_plans_that_mean_nothing(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        plan(**changed)


def test_a_projection_that_is_not_square_has_no_part_in_the_head() -> None:
    assert plan(layout={"head_dim": 4}, middle_blocks=0).blocks == 0


def test_middle_blocks_are_the_proxys_alone() -> None:
    with pytest.raises(ValidationError, match="middle_blocks is 1 with graph full_causal"):
        GraphPlan.model_validate(causal().model_dump() | {"middle_blocks": 1})


# Taps


def test_taps() -> None:
    block = ["norm", "o_proj.base", "o_proj.lora_ax", "o_proj.lora_bax", "o_proj", "output"]
    head = ["scaled", "lm_head.base", "lm_head.lora_ax", "lm_head.lora_bax", "lm_head", "loss"]
    blocks = [f"layers.{layer}.{name}" for layer in range(2) for name in block]
    assert taps.full_names(plan(middle_blocks=2)) == ("embedding", *blocks, *head)
    assert taps.full_names(plan(middle_blocks=0)) == ("embedding", *head)


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        ("chunked_loss", {"lm_head", "lm_head.base", "lm_head.lora_ax", "lm_head.lora_bax"}),
        ("fused_lora", {f"layers.0.o_proj.{part}" for part in ("base", "lora_ax", "lora_bax")}
         | {f"lm_head.{part}" for part in ("base", "lora_ax", "lora_bax")}),
        ("checkpoint", set()), ("fused_attention", set()),
    ],
)  # fmt: skip
def test_taps_that_a_path_never_holds(path: str, gone: set[str]) -> None:
    plain, fast = plan(middle_blocks=1), plan(middle_blocks=1, paths=(path,))
    assert set(taps.full_names(plain)) - set(taps.full_names(fast)) == gone
    for section in taps.sections(1):
        known = {"input"}
        for tap in taps.section_taps(fast, section):
            assert set(tap.inputs) <= known, tap.name
            known.add(tap.name)
    for name in sorted(gone):
        with pytest.raises(Invalid, match=f"the path {path} never holds the tap {name}"):
            graph.expected_graph_answer(fast, [name], B, T, gradients=False)


def test_shapes() -> None:
    wanted = plan(middle_blocks=1, lora=lora(rank_pattern={"lm_head": 2}))
    shapes = {name: shape for name, (shape, _) in graph.tap_shapes(wanted, B, T).items()}
    assert shapes == {
        "embedding": (B, T, 14), "layers.0.norm": (B, T, 14), "layers.0.o_proj.base": (B, T, 14), "layers.0.o_proj.lora_ax": (B, T, 3),
        "layers.0.o_proj.lora_bax": (B, T, 14), "layers.0.o_proj": (B, T, 14), "layers.0.output": (B, T, 14), "scaled": (B, T, 14),
        "lm_head.base": (B, T, 41), "lm_head.lora_ax": (B, T, 2), "lm_head.lora_bax": (B, T, 41), "lm_head": (B, T, 41), "loss": (),
    }  # fmt: skip


# What it is opened with


def test_weights_and_adapter() -> None:
    wanted = plan(middle_blocks=2, lora=lora(rank_pattern={"layers.1.o_proj": 5, "lm_head": 2}))
    square = ((14, 14), "float32")
    assert graph.weights(wanted) == {"embedding": ((41, 14), "float32"), "layers.0.o_proj": square, "layers.1.o_proj": square}
    assert {name: shape for name, (shape, _) in graph.adapter(wanted).items()} == {
        "layers.0.o_proj.lora_a": (3, 14), "layers.0.o_proj.lora_b": (14, 3), "layers.1.o_proj.lora_a": (5, 14),
        "layers.1.o_proj.lora_b": (14, 5), "lm_head.lora_a": (2, 14), "lm_head.lora_b": (41, 2),
    }  # fmt: skip


def test_every_linear_and_the_head_have_an_offset() -> None:
    wanted = graph.weights(plan(middle_blocks=2, base=Nf4(offsets_given=True)))
    assert {name for name in wanted if name.endswith(".offset")} == {"layers.0.o_proj.offset", "layers.1.o_proj.offset", "lm_head.offset"}


@pytest.mark.parametrize(
    ("section", "names"),
    [("embedding", {"embedding"}), ("layers.1", {"layers.1.o_proj"}), ("head", {"embedding"})],
)
def test_weights_of_one_section(section: str, names: set[str]) -> None:
    part = plan(sections=(section,))
    assert graph.weights(part).keys() == names
    assert graph.adapter(part) == graph.section_adapter(plan(), section)


@pytest.mark.parametrize(("section", "last"), [("layers.0", "output"), ("head", "loss")])
def test_what_a_block_answers(section: str, last: str) -> None:
    wanted = plan()
    given = {"input": np.ones((B, T, 14)), f"bar.{last}": np.ones((B, T, 14) if last == "output" else ())}
    if section == "head":
        given["labels"] = labels()
    assert graph.require_block(wanted, section, given) == (B, T)
    answer = graph.expected_block_answer(wanted, section, given, B, T)
    own = "o_proj" if section != "head" else "lm_head"
    gradients = {f"grad.{own}.lora_a", f"grad.{own}.lora_b", "grad.input"}
    assert answer.keys() == {tap.name for tap in taps.section_taps(wanted, section)} | gradients


def test_a_batch_is_held_against_the_vocabulary() -> None:
    graph.require_batch(plan(), ids(), labels())
    with pytest.raises(Invalid, match=r"allowed: 0 \.\. 40"):
        graph.require_batch(plan(), ids(value=41), labels())


# Where its adapter starts


def test_the_initial_adapter() -> None:
    found = adapter_init.initial(plan(middle_blocks=2), 7)
    assert found.keys() == graph.adapter(plan(middle_blocks=2)).keys()
    assert not any(matrix.any() for name, matrix in found.items() if name.endswith("lora_b"))
    other = adapter_init.initial(plan(middle_blocks=1), 7)
    assert all(found[name].tobytes() == matrix.tobytes() for name, matrix in other.items())
    assert (found["layers.0.o_proj.lora_a"] != found["layers.1.o_proj.lora_a"]).all()
