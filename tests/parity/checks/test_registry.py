"""The list of checks: sound, complete, and each of them green on a right stack and red on a wrong one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from hypothesis import Phase, given, settings

from contract.worker.operations import OPERATIONS
from parity.checks import registry
from parity.checks.check import Answered, Case, Check, Plan, Question
from parity.judge.verdict import Comparison
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

Arrays = Mapping[str, np.ndarray]

CHECKS = [check for check in registry.CHECKS if check.tier in "AB"]
"""Those of whole graphs are asked in test_graph.py."""
LAWS = [check for check in CHECKS if ".law" in check.id]
PRIMITIVES = [check for check in CHECKS if ".law" not in check.id]


def every(listed: Sequence[Check], examples: int) -> Callable[[Callable[[Plan, Case, Check], None]], Callable[[Check], None]]:
    """A test of each check, shown so many of its cases in each plan. Nothing is shrunk: a case says how it was made."""

    def decorate(body: Callable[[Plan, Case, Check], None]) -> Callable[[Check], None]:
        @pytest.mark.parametrize("check", listed, ids=lambda check: check.id)
        @pytest.mark.timeout(60)
        def test(check: Check) -> None:
            @settings(max_examples=examples, database=None, derandomize=True, deadline=None, phases=(Phase.generate,))
            @given(check.cases)
            def shown(case: Case) -> None:
                for plan in check.plans:
                    body(plan, case, check)

            shown()

        test.__doc__ = body.__doc__
        return test

    return decorate


def test_ids_are_unique_and_begin_with_their_tier() -> None:
    ids = [check.id for check in registry.CHECKS]
    assert len(set(ids)) == len(ids)
    assert all(check.id.startswith(f"{check.tier.lower()}.") for check in registry.CHECKS)
    assert registry.TIERS == ("A", "B", "C", "D", "E")


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


def answers(plan: Plan, case: Case) -> list[Arrays]:
    """A NumPy stack's."""
    with np.errstate(all="ignore"):
        return [COMPUTE[request.op](request.attrs, request.tensors) for request in plan.requests(case)]


def judged(plan: Plan, case: Case, *all_answers: Sequence[Arrays]) -> list[Comparison]:
    answered = [Answered(stack=f"s{i}", capabilities=CAPABILITIES, answers=one) for i, one in enumerate(all_answers)]
    with np.errstate(all="ignore"):
        comparisons = plan.judge(case, answered, 1e-9)
    assert all(not comparison.controls.missed for comparison in comparisons)
    assert len({comparison.tensor for comparison in comparisons}) == len(comparisons), "a report tells comparisons apart by their names"
    return comparisons


def passes(plan: Plan, case: Case, *all_answers: Sequence[Arrays]) -> bool:
    return all(comparison.passed for comparison in judged(plan, case, *all_answers))


def put(right: Sequence[Arrays], index: int, name: str, array: np.ndarray) -> list[Arrays]:
    """The answers with another tensor in one's place."""
    return [{**one, name: array} if at == index else one for at, one in enumerate(right)]


def tensors(check: Check, right: Sequence[Arrays]) -> Iterator[tuple[int, str, np.ndarray]]:
    """Every answered tensor that the check judges: of one at random y alone, since its sister check bounds the gradients."""
    for index, answer in enumerate(right):
        for name, array in answer.items():
            if not check.id.endswith("_random") or name == "y":
                yield index, name, array


def pairs(plan: Plan, right: Sequence[Arrays], wrong: Sequence[Arrays]) -> list[tuple[Sequence[Arrays], ...]]:
    """The stacks of a cell, one of them wrong."""
    return [(right, wrong), (wrong, right)] if plan.question is Question.SAME_FUNCTION else [(wrong,)]


@every(CHECKS, 4)
def test_a_right_stack_passes(plan: Plan, case: Case, check: Check) -> None:
    one = answers(plan, case)
    comparisons = judged(plan, case, *([one, one] if plan.question is Question.SAME_FUNCTION else [one]))
    assert comparisons
    assert [comparison for comparison in comparisons if not comparison.passed] == [], case.name


def spoil(array: np.ndarray) -> np.ndarray:
    """The last finite element wrong by much: what no legal arithmetic does."""
    wrong = array.copy()
    last = np.flatnonzero(np.isfinite(wrong))[-1:]
    flat = wrong.reshape(-1)
    flat[last] = flat[last] ^ 1 if wrong.dtype.kind in "iu" else 1e6 - flat[last] / 3
    return wrong


@every(PRIMITIVES, 2)
def test_every_answered_tensor_is_judged(plan: Plan, case: Case, check: Check) -> None:
    """A tensor that may be anything would pass for years; of two stacks, each one's."""
    right = answers(plan, case)
    for index, name, array in tensors(check, right):
        if np.isfinite(array).any():
            for stacks in pairs(plan, right, put(right, index, name, spoil(array))):
                assert not passes(plan, case, *stacks), (case.name, name)


@every(LAWS, 1)
def test_every_answer_of_a_law_is_judged(plan: Plan, case: Case, check: Check) -> None:
    """A law need not speak of every tensor: causality says nothing of the gradients of keys. But each answer must matter to it."""
    if plan.dtype != "float64":
        return
    right, rng = answers(plan, case), np.random.default_rng(0)
    assert {name for comparison in judged(plan, case, right) for name in right[0] if name in comparison.tensor} >= set(right[0])
    for index, answer in enumerate(right):
        wrong = [dict(one) for one in right]
        wrong[index] = {name: np.asarray(array + rng.integers(1, 1000, array.shape)).astype(array.dtype) for name, array in answer.items()}
        assert not passes(plan, case, wrong), (case.name, index)
        wrong[index] = {name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array for name, array in answer.items()}
        assert not passes(plan, case, wrong), (case.name, index)


@every(PRIMITIVES, 2)
def test_a_nan_anywhere_fails(plan: Plan, case: Case, check: Check) -> None:
    """A check that draws NaN or infinities on purpose takes it where it belongs alone."""
    right = answers(plan, case)
    for index, name, array in tensors(check, right):
        if array.dtype.kind == "f" and not np.isnan(array).all():
            spoilt = array.copy()
            spoilt.reshape(-1)[np.flatnonzero(~np.isnan(array))[-1]] = np.nan
            wrong = put(right, index, name, spoilt)
            both = [(wrong, wrong)] if plan.question is Question.SAME_FUNCTION and not check.id.endswith(("_special", "_masked")) else []
            for stacks in pairs(plan, right, wrong) + both:
                assert not passes(plan, case, *stacks), (case.name, name)


@every(PRIMITIVES, 2)
def test_an_answer_just_past_its_bound_fails(plan: Plan, case: Case, check: Check) -> None:
    """Each tensor's component of least head-room is moved to the nearest number of its dtype past the bound, on either side."""
    right = answers(plan, case)
    comparisons = judged(plan, case, *([right, right] if plan.question is Question.SAME_FUNCTION else [right]))
    for comparison in comparisons:
        name = comparison.tensor.partition(" of ")[0]
        if len(right) > 1 or name not in right[0] or comparison.unit != "absolute difference" or not np.isfinite(comparison.wanted):
            continue
        for side, where in ((comparison.bound, np.inf), (-comparison.bound, -np.inf)):
            moved = right[0][name].copy()
            moved[comparison.where] = past(comparison.wanted, side, where, moved.dtype)
            if np.isfinite(moved[comparison.where]):
                assert not passes(plan, case, *pairs(plan, right, put(right, 0, name, moved))[-1]), (case.name, comparison)


def past(wanted: float, side: float, where: float, dtype: np.dtype) -> np.ndarray:
    """The first number of a dtype that differs from `wanted` by more than |side|, towards `where`."""
    number = np.asarray(wanted + side, dtype)
    while abs(float(number) - wanted) <= abs(side):
        number = np.nextafter(number, np.asarray(where, dtype)) if dtype.kind == "f" else number + np.sign(where).astype(dtype)
    return number


@every(PRIMITIVES, 2)
def test_swapped_tensors_fail(plan: Plan, case: Case, check: Check) -> None:
    """Each two tensors of one shape in each other's place, where they differ."""
    right = answers(plan, case)
    for index, answer in enumerate(right):
        judged_names = {name for at, name, _ in tensors(check, right) if at == index}
        for one, other in itertools.combinations(sorted(answer), 2):
            swapped = {**answer, one: answer[other], other: answer[one]}
            alike = answer[one].shape != answer[other].shape or np.array_equal(answer[one], answer[other], equal_nan=True)
            if not alike and {one, other} & judged_names and answer[one].dtype == answer[other].dtype:
                wrong = [swapped if at == index else dict(whole) for at, whole in enumerate(right)]
                assert not passes(plan, case, *pairs(plan, right, wrong)[-1]), (case.name, one, other)


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
    with pytest.raises(ValueError, match=r"declares no error of exp in float32 on \[-104, 88.7\]"):
        plan.judge(case, [Answered(stack="s", capabilities=narrow, answers=answers(plan, case))], 1e-9)
