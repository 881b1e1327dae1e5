"""Tier C on stacks that are the reference but for what a test changed: each question sees what it should, and only that."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from contract.errors import MissingError, UserError
from contract.model import checkpoint
from contract.model.layout import LlamaLayout
from contract.worker import discover
from contract.worker import graph as graph_requests
from contract.worker.discover import StackInfo
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import graph, graph_draws, graph_judges, graph_law_checks, registry
from parity.checks.check import Answered, Check, GraphNeeds, Plan, Question
from parity.checks.graph_case import GraphAsk, GraphCase
from parity.checks.graph_layouts import BASES, OPTIONS, PLAIN
from parity.engine import Engine
from parity.find import bisect
from parity.profiles import Profile
from parity.report.record import Result, Status
from tests.contract.model import tiny_checkpoint
from tests.parity.graph_stack import CAPABILITIES, GraphStack, case_of, small_case, with_layout

TINY = 3e-8
"""Less than half of float32's last place."""


def check_of(check_id: str) -> Check:
    return next(check for check in registry.CHECKS if check.id == check_id)


def run(check: Check, *stacks: GraphStack, examples: int = 8, locate: bool = True) -> Mapping[tuple[str, ...], Result]:
    """Question, dtype and stacks -> result; locate: what fails is bisected too."""
    check = check if locate else dataclasses.replace(check, locate=lambda *about: ())
    infos = [StackInfo(name=stack.name, command=("nothing",), capabilities=CAPABILITIES) for stack in stacks]
    devices = [Device(info=info, name="CPU", dtypes=frozenset({"float32", "float64"})) for info in infos]
    cells = [cell for cell in matrix.matrix([check], devices) if cell.plan is not None]
    engine = Engine(
        cast("Mapping[str, StackProcess]", {stack.name: stack for stack in stacks}), {stack.name: CAPABILITIES for stack in stacks},
        profile=Profile(examples=examples), seed=1, rerun="--seed 1", statistical=100,
    )  # fmt: skip
    return {(result.question, result.dtype, *result.stacks): result for result in engine.run(check, cells)}


def states(results: Mapping[tuple[str, ...], Result]) -> dict[tuple[str, ...], Status]:
    return {key: result.status for key, result in results.items()}


@pytest.mark.parametrize(
    "check_id", ["c.llama", "c.llama_checkpoint", "c.gpt2", "c.qwen3_options", "c.mistral_packed", "c.packed_chunked_loss"]
)
def test_right_stacks_pass(check_id: str) -> None:
    check = check_of(check_id)
    results = run(check, GraphStack("one"), GraphStack("two"))
    assert results
    for result in results.values():
        assert result.status is Status.PASS, result.reason
        assert result.examples == max(1, 8 // check.cost) + check.fixed_count
        assert result.controls.caught == result.controls.applied > 0
        assert all(tensor.relative is not None for tensor in result.tensors)
        assert result.faults == ()


def test_an_error_below_float32_is_seen_in_float64_alone_and_named() -> None:
    results = run(check_of("c.llama"), GraphStack("right"), GraphStack("wrong", change=lambda plan: with_layout(
        rope_theta=plan.layout.rope_theta * (1 + TINY))(plan)))  # fmt: skip
    assert states(results) == {
        ("same_function", "float64", "right", "wrong"): Status.FAIL,
        ("precision", "float64", "right"): Status.PASS,
        ("precision", "float64", "wrong"): Status.FAIL,
        ("precision", "float32", "right"): Status.PASS,
        ("precision", "float32", "wrong"): Status.PASS,
    }
    failed = results["same_function", "float64", "right", "wrong"]
    assert {(fault.stack, fault.operation) for fault in failed.faults} == {("wrong", "rope.cos"), ("wrong", "rope.sin")}
    assert "rope" in failed.reason


def test_a_bug_that_two_stacks_share_is_seen_by_the_reference() -> None:
    change = lambda plan: with_layout(rms_norm_eps=plan.layout.rms_norm_eps * (1 + TINY))(plan)  # noqa: E731
    results = run(check_of("c.llama"), GraphStack("one", change=change), GraphStack("two", change=change), locate=False)
    assert results["same_function", "float64", "one", "two"].status is Status.PASS
    assert results["precision", "float64", "one"].status is Status.FAIL
    assert results["precision", "float64", "two"].status is Status.FAIL


@pytest.mark.parametrize("name", ["logits", "loss", "layers.0.weights", "grad.layers.1.v_proj.lora_a", "forward.logits", "forward.loss"])
def test_each_tap_and_gradient_is_looked_at(name: str) -> None:
    def spoil(of: str, answer: np.ndarray) -> np.ndarray:
        return np.asarray(answer * (1 + TINY)) if of == name else answer

    results = run(check_of("c.llama"), GraphStack("right"), GraphStack("wrong", spoil=spoil), examples=4, locate=False)
    failed = results["same_function", "float64", "right", "wrong"]
    assert failed.status is Status.FAIL
    assert failed.reason.startswith(f"{name}[")
    assert states(results)["precision", "float32", "wrong"] is Status.PASS


def answered(stack: GraphStack, case: GraphCase, plan: Plan) -> Answered:
    answers = [ask.send(cast(StackProcess, stack)).result().tensors for ask in plan.requests(case)]
    return Answered(stack=stack.name, capabilities=CAPABILITIES, answers=answers)


def test_every_answered_tensor_is_judged_and_no_nan_passes() -> None:
    """One element wrong by much, or NaN, in each tap and gradient; of two stacks, in each one's.

    The tensors of one layer at once: each is of another kind, and every kind has a verdict of its own, which fails while the others pass.
    """
    case = small_case()
    for plan in (plan for check_id in ("c.llama", "c.llama_chunked_loss") for plan in check_of(check_id).plans):
        right = answered(GraphStack("right"), case, plan)
        both = [right, right] if plan.question is Question.SAME_FUNCTION else [right]
        assert all(comparison.passed for comparison in plan.judge(case, both, 1e-9))
        for index, names in ((index, names) for index, answer in enumerate(right.answers[:2]) for names in by_layer(answer)):
            kinds = {graph_judges._kind(graph_judges.FORWARD * index + name) for name in names}
            assert len(kinds) == len(names)
            for value in (np.nan, 1e6):
                answers = [spoilt_in(one, names, value) if index == place else one for place, one in enumerate(right.answers)]
                spoilt = dataclasses.replace(right, answers=answers)
                pairs = [[spoilt, right], [right, spoilt]] if plan.question is Question.SAME_FUNCTION else [[spoilt]]
                for stacks in pairs:
                    failed = {one.tensor for one in plan.judge(case, stacks, 1e-9) if not one.passed}
                    assert failed == kinds, (plan.question, names)


def by_layer(answer: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The names of each layer, and those of none."""
    found: dict[str, list[str]] = {}
    for name in answer:
        layer = name.removeprefix("grad.").split(".")[1] if "layers." in name else ""
        found.setdefault(layer, []).append(name)
    return list(found.values())


def spoilt_in(answer: Mapping[str, np.ndarray], names: Sequence[str], value: float) -> dict[str, np.ndarray]:
    spoilt = dict(answer)
    for name in names:
        spoilt[name] = answer[name].copy()
        spoilt[name].reshape(-1)[-1:] = value
    return spoilt


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_fails(value: float) -> None:
    def spoil(of: str, answer: np.ndarray) -> np.ndarray:
        if of != "layers.1.gated":
            return answer
        answer = answer.copy()
        answer[0, 0, 0] = value
        return answer

    results = run(check_of("c.llama"), GraphStack("right"), GraphStack("wrong", spoil=spoil), locate=False)
    for key, result in results.items():
        assert result.status is (Status.FAIL if "wrong" in key else Status.PASS), key


def test_where_b_is_zero_the_gradient_of_a_is_zero_to_the_last_bit() -> None:
    def spoil(of: str, answer: np.ndarray) -> np.ndarray:
        return answer + 1e-300 if of == "grad.layers.0.q_proj.lora_a" else answer

    case = small_case(initial=True)
    check = dataclasses.replace(check_of("c.llama"), cases=None, fixed_cases=lambda: iter([case]), fixed_count=1, locate=None)
    results = run(check, GraphStack("right"), GraphStack("wrong", spoil=spoil))
    assert results["precision", "float64", "right"].status is Status.PASS
    assert results["same_function", "float64", "right", "wrong"].status is Status.FAIL
    assert results["same_function", "float64", "right", "wrong"].bound == 0


def test_a_missing_tap_breaks_the_protocol() -> None:
    class Silent(GraphStack):
        def _gradients(self, values, tensors):  # type: ignore[no-untyped-def]
            return {name: array for name, array in super()._gradients(values, tensors).items() if name != "layers.0.q_rope"}

    results = run(check_of("c.llama"), GraphStack("right"), Silent("wrong"))
    assert results["precision", "float32", "wrong"].status is Status.ERROR
    assert "layers.0.q_rope" in results["precision", "float32", "wrong"].reason


def test_the_graph_is_opened_once_and_then_only_the_adapter_travels() -> None:
    first, second = small_case(initial=True), small_case(initial=False)
    stack = GraphStack("one")
    for case in (first, second):
        ask = GraphAsk(case=case, plan=case.plan)
        ask.send(cast(StackProcess, stack)).result()
    assert stack.asked == ["open", "state", "gradients", "state", "gradients"]
    ask = GraphAsk(case=first, plan=first.plan.model_copy(update={"dtype": "float32"}))
    ask.send(cast(StackProcess, stack)).result()
    assert stack.asked[-3:] == ["open", "state", "gradients"]


def test_a_stack_that_ignores_state_is_seen() -> None:
    class Deaf(GraphStack):
        def _state(self, values, tensors):  # type: ignore[no-untyped-def]
            return {}

    results = run(check_of("c.llama"), GraphStack("right"), Deaf("wrong"), locate=False)
    assert results["precision", "float64", "wrong"].status is Status.FAIL
    assert results["precision", "float32", "wrong"].status is Status.FAIL


def test_what_is_wrong_between_sections_is_said_to_be() -> None:
    """Right in each section alone, wrong in the whole graph."""

    def spoil(of: str, answer: np.ndarray) -> np.ndarray:
        return answer * (1 + TINY) if of.startswith(("layers.1.output", "final_norm")) else answer

    results = run(check_of("c.llama"), GraphStack("right"), GraphStack("wrong", spoil=spoil))
    (fault,) = results["precision", "float64", "wrong"].faults
    assert fault.operation == bisect.BETWEEN_SECTIONS
    assert fault.stack == "wrong"


def test_a_model_whose_values_leave_the_range_is_no_verdict() -> None:
    """Neither a pass nor a fault of a stack: an infinite limit would accept anything."""
    case = small_case()
    huge = {name: np.full_like(weight, 3e38) if name.endswith("norm") else weight for name, weight in case.weights.items()}
    case = dataclasses.replace(case, weights=huge)
    check = dataclasses.replace(check_of("c.llama"), cases=None, fixed_cases=lambda: iter([case]), fixed_count=1)
    with np.errstate(all="ignore"):
        results = run(check, GraphStack("right"), GraphStack("other"))
    for result in results.values():
        assert result.status in (Status.ERROR, Status.FAIL)
        assert result.status is Status.ERROR or result.dtype == "float32"


def test_a_stack_that_declares_no_exp_is_told_so() -> None:
    with pytest.raises(ValueError, match="declares no error of exp and log, which"):
        graph_judges.worst_ulp(PLAIN["llama"][0].layout, ())


@pytest.mark.parametrize("positions", [1, 2])
def test_too_few_positions_are_refused(positions: int, tmp_path: Path) -> None:
    model = tiny_checkpoint.write(tmp_path / "model", max_position_embeddings=positions)
    with pytest.raises(UserError, match=f"max_position_embeddings is {positions}; tier C needs 3"):
        list(graph_draws.real_cases(str(model)))


def test_drawn_cases_are_hard() -> None:
    """What testing.md of any such project would ask: no two sizes equal, GQA with 1 < K < H, alpha that is not rank, and so on."""
    for recipe in (recipe for recipes in (*PLAIN.values(), *OPTIONS.values()) for recipe in recipes):
        layout, lora = recipe.layout, recipe.lora
        if layout.model_type == "gpt2":
            assert layout.num_key_value_heads == layout.num_attention_heads
        else:
            assert 1 < layout.num_key_value_heads < layout.num_attention_heads
        assert getattr(layout, "rms_norm_eps", 1) > 1e-3
        assert lora.alpha != lora.rank
        sizes = (layout.num_attention_heads, layout.head_dim, layout.hidden_size, layout.intermediate_size, layout.vocab_size)
        assert len({*sizes, *recipe.batch}) == len(sizes) + len(recipe.batch) or layout.head_dim == layout.num_attention_heads
        assert recipe.batch[0] != layout.num_key_value_heads or layout.model_type == "gpt2"
        windows = {layout.window(layer) for layer in range(layout.num_hidden_layers)} - {None}
        assert all(window < recipe.batch[1] for window in windows if window)
    for recipes in PLAIN.values():
        assert {recipe.layout.tie_word_embeddings for recipe in recipes} == {True, False}
        assert not any(recipe.layout.options for recipe in recipes)
        if recipes[0].layout.model_type != "gpt2":
            assert any(it.layout.num_attention_heads * it.layout.head_dim != it.layout.hidden_size for it in recipes)
    llamas = [recipe.layout for recipe in PLAIN["llama"]]
    assert {layout.attention_bias for layout in llamas} == {layout.mlp_bias for layout in llamas} == {True, False}
    ranks = {
        lora.rank_of(f"layers.2.{name}")
        for recipes in OPTIONS.values()
        for lora in (it.lora for it in recipes)
        for name in ("v_proj", "k_proj")
    }
    assert 1 in ranks
    assert {base.block_size for base in BASES.values()} == {32, 64, 128}
    assert {base.double_quant for base in BASES.values()} == {True, False}
    case = small_case()
    assert (case.batch.ids == 0).any()
    assert (case.batch.labels == -100).any()


def test_every_option_that_a_layout_may_have_is_asked_of_some_graph() -> None:
    """Those that a stack can declare; and a window in some layers alone, in both ways in which config.json says so."""
    asked = {option for recipes in OPTIONS.values() for recipe in recipes for option in recipe.layout.options}
    known = {
        option for info in discover.discover().values() if info.capabilities.graphs for option in info.capabilities.graphs.layout_options
    }
    assert known <= asked
    of_layers = [
        {it.layout.window(layer) for layer in range(it.layout.num_hidden_layers)} for it in (OPTIONS["qwen2"][0], OPTIONS["qwen3"][1])
    ]
    assert all(len(windows) == 2 for windows in of_layers)
    layout = OPTIONS["llama"][1].layout
    assert isinstance(layout, LlamaLayout)
    assert layout.rope_scaling is not None
    wavelengths = 2 * np.pi * layout.rope_theta ** (np.arange(0, layout.head_dim, 2) / layout.head_dim)
    length = layout.rope_scaling.original_max_position_embeddings or 0
    assert [int(np.searchsorted([length / 4, length / 1], wave)) for wave in wavelengths] == [0, 1, 2], "one kept, one between, one slowed"


def test_packed_cases_are_hard() -> None:
    """Padding on both sides, a text of one token, positions that count from elsewhere than 0, labels that count in a packed batch."""
    for recipes in OPTIONS.values():
        for seed, recipe in enumerate(recipes):
            batch = case_of(recipe, seed, packed=True).batch
            assert batch.segments is not None
            assert batch.positions is not None
            graph_requests.require_batch(case_of(recipe).plan, batch.ids, batch.labels, batch.positions, batch.segments)
            assert (batch.ids[batch.segments == -1] == graph_draws.END).all(), "padding is a true token's id"
            assert ((batch.labels == graph_draws.END) & (batch.segments != -1)).any()
            assert (batch.segments[:, 0] == -1).any()
            assert (batch.segments[:, -1] == -1).any()
            assert all((np.unique(row[row >= 0], return_counts=True)[1] == 1).any() for row in batch.segments)
            assert (batch.positions[batch.segments == 2] >= 3).all()
            assert (batch.labels != -100).sum(axis=1).min() > 0


def test_real_cases_are_of_the_checkpoint() -> None:
    cases = list(graph_draws.real_cases(graph.MODEL))
    assert len(cases) == check_of("c.model").fixed_count == 2
    assert cases[0].batch.ids.shape == (graph_draws.MODEL_SEQUENCES, graph_draws.MODEL_TOKENS)
    assert all(matrix.any() for matrix in cases[0].adapter.values()), "the one that the shortest profile asks"
    assert not any(matrix.any() for name, matrix in cases[1].adapter.items() if name.endswith("lora_b"))
    found = checkpoint.locate(graph.MODEL)
    np.testing.assert_array_equal(cases[0].weight("layers.29.down_proj"), checkpoint.load(found, "layers.29.down_proj"))


def test_a_checkpoint_needs_its_architecture_and_its_options(tmp_path: Path) -> None:
    model = tiny_checkpoint.write(tmp_path / "model", rope_scaling={"rope_type": "linear", "factor": 2.0})
    assert graph_draws.real_needs(str(model)) == GraphNeeds(model_types=("llama",), layout_options=("rope_scaling.linear",))
    assert graph_draws.real_needs(str(tmp_path / "nowhere")) == GraphNeeds(model_types=("llama",))
    of_it = {check.id: check for check in graph.checks(str(model))}
    assert all(plan.graph == graph_draws.real_needs(str(model)) for plan in of_it["c.model"].plans)
    assert all(plan.graph is not None and plan.graph.nf4 for plan in of_it["c.model_nf4"].plans)


def test_a_model_that_is_not_there() -> None:
    with pytest.raises((MissingError, UserError)):
        list(graph_draws.real_cases("nowhere/at-all"))


def test_checks_explain_what_they_do_not_ask() -> None:
    reasons: Sequence[str] = [reason for check in graph.checks() for reason in check.not_applicable.values()]
    assert all("c.llama" in reason or reason == graph_law_checks.ALONE for reason in reasons)
