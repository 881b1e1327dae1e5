"""The list of checks: sound, complete, and each of them green on a right stack and red on a wrong one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings

from contract.worker.operations import OPERATIONS
from parity.checks import registry
from parity.checks.check import Answered, Case, Check, Plan, Question
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

PLANS = [(check, plan) for check in registry.CHECKS for plan in check.plans if plan.graph is None]
"""Of primitives; those of whole graphs are asked in test_graph.py."""
each_plan = pytest.mark.parametrize(("check", "plan"), PLANS, ids=[f"{c.id}-{p.question}-{p.dtype}" for c, p in PLANS])


def test_ids_are_unique_and_begin_with_their_tier() -> None:
    ids = [check.id for check in registry.CHECKS]
    assert len(set(ids)) == len(ids)
    assert all(check.id.startswith(f"{check.tier.lower()}.") for check in registry.CHECKS)
    assert registry.TIERS == ("A", "B", "C")


def test_every_operation_is_checked() -> None:
    assert {op for check in registry.CHECKS for op in check.operations} == set(OPERATIONS)


def test_every_question_is_asked_or_explained() -> None:
    for check in registry.CHECKS:
        asked = {plan.question for plan in check.plans}
        assert asked | set(check.not_applicable) == set(Question)
        assert asked.isdisjoint(check.not_applicable)
        assert all(len(reason) > 10 for reason in check.not_applicable.values())


def test_same_function_is_asked_in_float64_wherever_the_operation_has_it() -> None:
    for check in registry.CHECKS:
        for plan in check.plans:
            if plan.question is Question.SAME_FUNCTION and check.tier == "A":
                assert plan.dtype == "float64"


def test_a_question_that_is_neither_asked_nor_explained_is_refused() -> None:
    good = registry.CHECKS[0]
    for wrong in ({}, dict.fromkeys(Question, "a reason")):
        with pytest.raises(AssertionError, match=good.id):
            Check(
                id=good.id, tier="A", title="", operations=good.operations, plans=good.plans, not_applicable=wrong, cases=good.cases
            )  # fmt: skip


def answers(plan: Plan, case: Case) -> list[Mapping[str, np.ndarray]]:
    """A NumPy stack's."""
    return [COMPUTE[request.op](request.attrs, request.tensors) for request in plan.requests(case)]


def judged(plan: Plan, case: Case, *all_answers: list[Mapping[str, np.ndarray]]) -> dict[str, bool]:
    answered = [Answered(stack=f"s{i}", capabilities=CAPABILITIES, answers=one) for i, one in enumerate(all_answers)]
    with np.errstate(all="ignore"):
        comparisons = plan.judge(case, answered, 1e-9)
    assert all(not comparison.controls.missed for comparison in comparisons)
    return {comparison.tensor: comparison.passed for comparison in comparisons}


@each_plan
def test_a_right_stack_passes(check: Check, plan: Plan) -> None:
    @settings(max_examples=10, database=None, derandomize=True, deadline=None)
    @given(check.cases)
    def every(case: Case) -> None:
        one = answers(plan, case)
        stacks = [one, one] if plan.question is Question.SAME_FUNCTION else [one]
        verdicts = judged(plan, case, *stacks)
        assert verdicts
        assert all(verdicts.values()), (case.name, verdicts)

    every()


def spoil(array: np.ndarray) -> np.ndarray:
    """The last element wrong by much: what no legal arithmetic does."""
    wrong = array.copy()
    last = wrong.reshape(-1)[-1:]
    last[:] = last ^ 1 if wrong.dtype.kind in "iu" else 3 * last + 1e6
    return wrong


@each_plan
@pytest.mark.parametrize("side", [0, 1])
def test_every_answered_tensor_is_judged(check: Check, plan: Plan, side: int) -> None:
    """A tensor that may be anything would pass for years; of two stacks, each one's."""
    if side and plan.question is not Question.SAME_FUNCTION:
        side = 0

    @settings(max_examples=3, database=None, derandomize=True, deadline=None)
    @given(check.cases)
    def every(case: Case) -> None:
        right = answers(plan, case)
        for index, answer in enumerate(right):
            for name in answer:
                if check.id.endswith("_random") and name != "y":
                    continue  # judged by the hard bound of its sister check
                wrong = [dict(one) for one in right]
                wrong[index][name] = spoil(answer[name])
                stacks = [wrong] if plan.question is not Question.SAME_FUNCTION else [right, right]
                if plan.question is Question.SAME_FUNCTION:
                    stacks[side] = wrong
                assert not all(judged(plan, case, *stacks).values()), (case.name, name)

    every()


@each_plan
@pytest.mark.timeout(60)
def test_a_nan_anywhere_fails(check: Check, plan: Plan) -> None:
    @settings(max_examples=2, database=None, derandomize=True, deadline=None)
    @given(check.cases)
    def every(case: Case) -> None:
        right = answers(plan, case)
        for index, answer in enumerate(right):
            for name, array in answer.items():
                if array.dtype.kind != "f" or (check.id.endswith("_random") and name != "y"):
                    continue
                wrong = [dict(one) for one in right]
                wrong[index][name] = array.copy()
                wrong[index][name].reshape(-1)[-1:] = np.nan
                pairs = [[right, wrong], [wrong, right], [wrong, wrong]] if plan.question is Question.SAME_FUNCTION else [[wrong]]
                for stacks in pairs:
                    assert not all(judged(plan, case, *stacks).values()), (case.name, name)

    every()


def test_a_worse_declaration_than_allowed_fails() -> None:
    """Over 8 ulp needs a waiver, however truly it is declared."""
    check = next(check for check in registry.CHECKS if check.id == "a.exp")
    (case,) = check.fixed_cases()  # type: ignore[misc]
    plan = check.plans[0]
    worse = CAPABILITIES.model_copy(update={"elementary": tuple(one.model_copy(update={"ulp": 9.0}) for one in CAPABILITIES.elementary)})
    verdicts = plan.judge(case, [Answered(stack="s", capabilities=worse, answers=answers(plan, case))], 1e-9)
    assert [verdict.tensor for verdict in verdicts if not verdict.passed] == ["exp as declared"]


def test_an_absolute_error_is_no_way_around_the_limit() -> None:
    """A declaration that calls a quarter off "absolute" is a finding too; flushed subnormal results are none."""
    check = next(check for check in registry.CHECKS if check.id == "a.exp")
    (case,) = check.fixed_cases()  # type: ignore[misc]
    plan = check.plans[0]
    for absolute, failing in ((0.5, ["absolute error of exp as declared"]), (2.0**-126, [])):
        update = {"elementary": tuple(one.model_copy(update={"absolute": absolute}) for one in CAPABILITIES.elementary)}
        stack = Answered(stack="s", capabilities=CAPABILITIES.model_copy(update=update), answers=answers(plan, case))
        assert [verdict.tensor for verdict in plan.judge(case, [stack], 1e-9) if not verdict.passed] == failing


@pytest.mark.parametrize("check", [check for check in registry.CHECKS if check.fixed_cases], ids=lambda check: check.id)
def test_fixed_cases_are_counted(check: Check) -> None:
    assert check.fixed_cases is not None
    assert check.fixed_count == sum(1 for _ in check.fixed_cases())


def test_a_declaration_of_less_than_the_range_is_none() -> None:
    check = next(check for check in registry.CHECKS if check.id == "a.exp")
    (case,) = check.fixed_cases()  # type: ignore[misc]
    plan = check.plans[0]
    narrow = CAPABILITIES.model_copy(update={"elementary": tuple(one.model_copy(update={"low": -10.0}) for one in CAPABILITIES.elementary)})
    with pytest.raises(ValueError, match=r"declares no error of exp in float32 on \[-104, 0\]"):
        plan.judge(case, [Answered(stack="s", capabilities=narrow, answers=answers(plan, case))], 1e-9)
