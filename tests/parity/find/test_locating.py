"""Every failing input of a kind of its own is bisected, not the first alone; faults of several inputs are told together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pytest

from contract.worker.discover import StackInfo
from contract.worker.plan import GraphPlan
from contract.worker.process import StackProcess
from parity import cells as matrix
from parity.cells import Device
from parity.checks import registry
from parity.checks.check import Case, Check, Plan
from parity.checks.graph_case import GraphCase
from parity.checks.graph_layouts import OPTIONS
from parity.engine import Engine
from parity.find import locating
from parity.find.fault import Fault
from parity.find.locating import together
from parity.profiles import Profile
from parity.report.record import Result, Status
from tests.parity.graph_stack import CAPABILITIES, GraphStack, case_of

TINY = 3e-8


def fault(operation: str, *sections: str, stack: str = "one", direction: str = "forward") -> Fault:
    return Fault.model_validate(
        {
            "stack": stack, "operation": operation, "direction": direction, "sections": sections, "tensor": operation, "where": (0,),
            "got": 1.0, "wanted": 2.0, "observed": 1.0, "bound": 0.5, "relative": 0.5,
        }
    )  # fmt: skip


def test_faults_of_one_operation_are_one_with_all_its_sections() -> None:
    found = together(
        [
            fault("q_proj", "layers.0"), fault("logits", "head"), fault("q_proj", "layers.1", "layers.0", direction="backward"),
            fault("q_proj", "layers.0", stack="two"),
        ]
    )  # fmt: skip
    assert [(one.stack, one.operation, one.sections, one.direction) for one in found] == [
        ("one", "q_proj", ("layers.0", "layers.1"), "both"),
        ("one", "logits", ("head",), "forward"),
        ("two", "q_proj", ("layers.0",), "forward"),
    ]


def wrong_where(plan: GraphPlan) -> GraphPlan:
    """A stack with two independent faults, each in graphs of its own: one in norms of tied models, one in RoPE of others."""
    layout = plan.layout
    if layout.tie_word_embeddings:
        changed = layout.model_copy(update={"rms_norm_eps": layout.rms_norm_eps * (1 + TINY)})
    else:
        changed = layout.model_copy(update={"rope_theta": layout.rope_theta * (1 + TINY)})
    return plan.model_copy(update={"layout": changed})


def check_on(*cases: GraphCase) -> Check:
    (check,) = (one for one in registry.CHECKS if one.id == "c.llama_options")
    only = tuple(plan for plan in check.plans if (plan.question, plan.dtype) == ("precision", "float64"))
    reasons = {"same_function": "not here", "fast_path": "not here"}
    return dataclasses.replace(
        check, plans=only, not_applicable=reasons, cases=None, fixed_cases=lambda: iter(cases), fixed_count=len(cases)
    )


def result_of(check: Check, stack: GraphStack) -> Result:
    info = StackInfo(name=stack.name, command=("nothing",), capabilities=CAPABILITIES)
    asked = [
        cell for cell in matrix.matrix([check], [Device(info=info, name="CPU", dtypes=frozenset({"float64"}))]) if cell.plan is not None
    ]
    processes = cast("Mapping[str, StackProcess]", {stack.name: stack})
    engine = Engine(processes, {stack.name: CAPABILITIES}, profile=Profile(examples=1), seed=1, rerun="", statistical=10)
    (result,) = engine.run(check, asked)
    return result


def looked_at(check: Check) -> tuple[Check, list[str]]:
    """The check with a bisection that only says what it was asked about."""
    names: list[str] = []

    def locate(case: Case, plan: Plan, *rest: object) -> Sequence[Fault]:
        names.append(case.name)
        return [fault(f"operation of {len(names)}", "head")]

    return dataclasses.replace(check, locate=locate), names


FIRST, SECOND = case_of(OPTIONS["llama"][0], 1), case_of(OPTIONS["llama"][1], 2)


def test_two_faults_that_no_input_shows_together_are_both_named() -> None:
    result = result_of(check_on(FIRST, SECOND), GraphStack("wrong", change=wrong_where))
    assert result.status is Status.FAIL
    assert {one.operation for one in result.faults} == {"rope.cos", "rope.sin", "attention_norm", "mlp_norm", "final_norm"}


def test_inputs_that_fail_in_one_way_are_looked_at_once() -> None:
    again = case_of(OPTIONS["llama"][0], 3)
    check, names = looked_at(check_on(FIRST, again, SECOND))
    result = result_of(check, GraphStack("wrong", change=wrong_where))
    assert names == [FIRST.name, SECOND.name]
    assert [one.operation for one in result.faults] == ["operation of 1", "operation of 2"]


def test_a_tensor_that_failed_in_no_earlier_input_is_looked_at_too() -> None:
    again = case_of(OPTIONS["llama"][0], 3)

    def spoil(name: str, answer: np.ndarray) -> np.ndarray:
        return answer * (1 + TINY) if name in (("loss", "logits") if len(stack.asked) > 3 else ("loss",)) else answer

    stack = GraphStack("wrong", spoil=spoil)
    check, names = looked_at(check_on(FIRST, again))
    result_of(check, stack)
    assert names == [FIRST.name, again.name]


def test_after_its_time_only_the_first_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locating, "SECONDS", -1.0)
    check, names = looked_at(check_on(FIRST, SECOND))
    result_of(check, GraphStack("wrong", change=wrong_where))
    assert names == [FIRST.name]
