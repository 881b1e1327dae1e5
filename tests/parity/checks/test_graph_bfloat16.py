"""Tier C in bfloat16, on stacks that are the reference but for what a test changed; and what its perturbed runs are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import ml_dtypes
import numpy as np
import pytest

from contract.worker import taps
from contract.worker.discover import StackInfo
from contract.worker.plan import Nf4
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity import session
from parity.cells import Device
from parity.checks import registry
from parity.checks.check import Answered, Check, Question
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.engine import Engine
from parity.find import bisect
from parity.judge import perturb
from parity.profiles import IN_FULL, PROFILES, Profile
from parity.report.record import Result, Status
from tests.parity.graph_stack import CAPABILITIES, GraphStack, case_of, small_case, with_layout

NARROW = [check for check in registry.CHECKS if check.tier == "C" and any(plan.dtype == "bfloat16" for plan in check.plans)]


def check_of(check_id: str) -> Check:
    return next(check for check in NARROW if check.id == check_id)


def result_of(check: Check, stack: GraphStack) -> Result:
    info = StackInfo(name=stack.name, command=("nothing",), capabilities=CAPABILITIES)
    device = Device(info=info, name="CPU", dtypes=frozenset({"bfloat16"}))
    found = [cell for cell in matrix.matrix([check], [device]) if cell.plan is not None]
    engine = Engine(
        cast("Mapping[str, StackProcess]", {stack.name: stack}), {stack.name: CAPABILITIES}, profile=Profile(examples=8), seed=1,
        rerun="--seed 1", statistical=100,
    )  # fmt: skip
    (result,) = engine.run(check, found)
    return result


def one_case(check_id: str, *, locate: bool = True) -> Check:
    """The check on one graph alone; locate: with the operations at fault."""
    check, case = check_of(check_id), small_case()
    return dataclasses.replace(check, cases=None, fixed_cases=lambda: iter([case]), fixed_count=1, locate=check.locate if locate else None)


def test_every_architecture_is_asked_and_the_proxy_graph_and_nf4_bases() -> None:
    others = {"c.llama_bfloat16_nf4", "c.proxy_bfloat16", "c.proxy_bfloat16_nf4"}
    assert {check.id for check in NARROW} == {*(f"c.{model_type}_bfloat16" for model_type in OPTIONS), *others}
    assert {plan.question for check in NARROW for plan in check.plans} == {Question.PRECISION}
    assert {PROFILES["quick"].drawn(check) for check in NARROW} == {0}
    assert all(check.fixed_count == 1 and PROFILES["nightly"].drawn(check) >= 2 for check in NARROW)
    in_full = [check for check in NARROW if not check.model_types or check.model_types & IN_FULL]
    assert all(PROFILES["ci"].drawn(check) >= 2 for check in in_full)


@pytest.mark.parametrize("check_id", ["c.qwen3_bfloat16", "c.gpt2_bfloat16"])
def test_a_right_stack_passes(check_id: str) -> None:
    check = check_of(check_id)
    result = result_of(check, GraphStack("right"))
    assert result.status is Status.PASS, result.reason
    assert result.examples == check.fixed_count
    assert result.controls.caught == result.controls.applied > 0
    assert {"logits", "forward.loss", "alone.logits", "alone.grad.input"} <= {tensor.tensor for tensor in result.tensors}


def test_an_operation_that_is_off_by_less_than_the_graph_s_roundings_is_named() -> None:
    """eps off by half moves a norm by a few roundings to bfloat16, and the logits by less than their limit."""
    wrong = GraphStack("wrong", change=lambda plan: with_layout(rms_norm_eps=plan.layout.rms_norm_eps * 1.5)(plan))
    result = result_of(one_case("c.llama_bfloat16"), wrong)
    assert result.status is Status.FAIL
    assert result.reason.startswith("alone.")
    assert {fault.operation for fault in result.faults} == {"attention_norm", "mlp_norm", "final_norm"}


@pytest.mark.parametrize(("kept", "found"), [("q_proj", bisect.NO_SINGLE_OPERATION), ("output", bisect.BETWEEN_SECTIONS)])
def test_a_tap_that_is_shown_rounded_and_used_unrounded_is_seen(kept: str, found: str) -> None:
    """More precise than it says: within every limit on errors. The last tap of a section is used by the next one."""
    result = result_of(one_case("c.llama_bfloat16"), GraphStack("wrong", keeps=(kept,)))
    assert result.status is Status.FAIL
    assert result.reason.startswith("used.")
    assert [fault.operation for fault in result.faults] == [found]
    assert (result.faults[0].tensor == kept) == (kept == "q_proj")


@pytest.mark.parametrize(("name", "found"), [("grad.layers.1.v_proj.lora_a", {bisect.BETWEEN_SECTIONS}), ("forward.loss", set())])
def test_what_only_the_whole_graph_shows_is_looked_at_too(name: str, found: set[str]) -> None:
    def spoil(of: str, answer: np.ndarray) -> np.ndarray:
        return answer * 2 if of == name else answer

    result = result_of(one_case("c.llama_bfloat16", locate=bool(found)), GraphStack("wrong", spoil=spoil))
    assert result.status is Status.FAIL
    assert result.reason.startswith(name)
    assert {fault.operation for fault in result.faults} == found


def test_every_answered_tensor_is_judged_and_no_nan_passes() -> None:
    case, (plan,) = small_case(), check_of("c.llama_bfloat16").plans
    stack = cast(StackProcess, GraphStack("right"))
    answers = [ask.send(stack).result().tensors for ask in plan.requests(case)]
    right = Answered(stack="right", capabilities=CAPABILITIES, answers=answers)
    judged = plan.judge(case, [right], 1e-9)
    assert all(comparison.passed for comparison in judged)
    assert {one.place for one in judged if one.tensor.startswith("alone.")} == {
        f"alone.{'grad.' * name.startswith('grad.')}{taps.prefix(section)}{name.removeprefix('grad.')}"
        for section, answer in zip(("embedding", "layers.1", "head"), answers[2:5], strict=True) for name in answer
    }  # fmt: skip
    assert {one.place for one in judged if one.tensor.startswith("used.")} == {
        f"used.{taps.prefix(section)}{name}"
        for section, answer in zip(("embedding", "layers.1", "head"), answers[5:], strict=True) for name in answer if "grad." not in name
    }  # fmt: skip
    spoilt = [{name: _with_nan(array) for name, array in answer.items()} for answer in answers]
    judged = plan.judge(case, [dataclasses.replace(right, answers=spoilt)], 1e-9)
    assert not any(comparison.passed for comparison in judged if comparison.tensor != "zero.weights")


def _with_nan(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[-1:] = np.nan
    return array


@pytest.mark.parametrize("base", [None, Nf4(block_size=32, double_quant=False)], ids=["plain", "nf4"])
def test_the_reference_has_bfloat16_s_weights_and_adapter_and_the_request_has_the_masters(base: Nf4 | None) -> None:
    case = small_case(base=base)
    right = case.in_dtype("bfloat16")
    assert (case.in_dtype("float64"), right.plan.dtype) == (case, "bfloat16")
    for name in ("embedding", "final_norm", "layers.0.q_proj", "layers.1.down_proj"):
        np.testing.assert_array_equal(right.weight(name), case.weight(name).astype(ml_dtypes.bfloat16).astype(np.float32))
        assert (right.weight(name) != case.weight(name)).any()
    for name, master in case.adapter.items():
        np.testing.assert_array_equal(right.adapter[name], master.astype(ml_dtypes.bfloat16).astype(np.float32))
    (plan,) = check_of("c.llama_bfloat16").plans
    assert all(ask.case is case for ask in plan.requests(case))


def responses(name: str) -> tuple[perturb.Response, perturb.Response]:
    """At bfloat16's own u and at one where nothing of second order is left."""
    case = case_of({"llama": PLAIN["llama"][0], "gpt2": OPTIONS["gpt2"][0]}[name]).in_dtype("bfloat16")
    with pytest.MonkeyPatch.context() as patch:
        _, own = perturb.respond(case.plan, case.weight, case.adapter, case.batch, runs=10, seed=1, ulp=1.0)
        patch.setattr(perturb, "_injected", lambda dtype: ("mixed", perturb.INJECTED))
        _, first = perturb.respond(case.plan, case.weight, case.adapter, case.batch, runs=10, seed=1, ulp=1.0)
    return own, first


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_response_at_bfloat16_s_u_is_linear_to_a_tenth_and_not_more(name: str) -> None:
    """What docs/theory.md claims, and no gate: the runs are at that u, so that nothing rests on it."""
    own, first = responses(name)
    ratios = np.concatenate([np.ravel(rows[first.rows[tap] > 0] / first.rows[tap][first.rows[tap] > 0]) for tap, rows in own.rows.items()])
    assert ratios.min() > 0.9
    assert ratios.max() < 1.1
    assert np.abs(ratios - 1).max() > 1e-3


def test_what_is_stored_errs_by_bfloat16_s_u_and_the_loss_by_what_goes_into_it() -> None:
    own, _ = responses("llama")
    assert not own.rows["embedding"].any(), "a look-up"
    case = small_case().in_dtype("bfloat16")
    ids = [tap.name for tap in taps.section_taps(case.plan, "layers.0")]
    assert all(own.rows[f"layers.0.{name}"].any() for name in ids)
    trace, _ = perturb.respond(case.plan, case.weight, case.adapter, case.batch, runs=1, seed=1, ulp=1.0)
    norm = np.linalg.norm(trace.taps["layers.0.attention_norm"], axis=-1) / np.sqrt(3)
    np.testing.assert_allclose(own.rows["layers.0.attention_norm"], norm, rtol=0.6)


def test_a_stack_that_declares_bfloat16_graphs_alone_is_asked_for_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No operation of tier A or B is in bfloat16."""
    monkeypatch.chdir(tmp_path)  # the project's own stacks only, whatever parity.toml lies in the current folder
    found = session.coverage_of_all()
    assert {found[f"{check.id} | precision | bfloat16 | torch_qlora on CPU"] for check in NARROW} == {"run"}
    assert not any(key.startswith(("a.", "b.")) and "bfloat16" in key for key in found)
