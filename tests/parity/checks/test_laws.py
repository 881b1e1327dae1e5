"""Each law is kept by the NumPy stack, and can be broken: by a primitive that is wrong in a way of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import Phase, given, settings

from parity.checks import laws_attention, laws_layers, laws_training
from parity.checks.check import Answered, Case, Check, Question
from parity.judge.verdict import Comparison
from tests.parity.checks.lawless_primitives import LAWLESS
from tests.parity.numpy_primitives import Arrays, Attributes, Compute, Tensors
from tests.parity.numpy_stack import CAPABILITIES, COMPUTE

CHECKS = {check.operations[-1]: check for check in (*laws_layers.CHECKS, *laws_attention.CHECKS, *laws_training.CHECKS)}
EXAMPLES = 3


def judged(op: str, compute: Compute, examples: int = EXAMPLES) -> list[list[Comparison]]:
    """What the laws of an operation say of it in float64, example by example."""
    check, seen = CHECKS[op], []

    @settings(max_examples=examples, database=None, derandomize=True, deadline=None, phases=(Phase.generate,))
    @given(check.cases)
    def every(case: Case) -> None:
        answers = []
        plan = next(plan for plan in check.plans if plan.dtype == "float64")
        with np.errstate(all="ignore"):
            for request in plan.requests(case):
                made = (compute if request.op == op else COMPUTE[request.op])(request.attrs, request.tensors)
                answers.append(made)
            seen.append(plan.judge(case, [Answered(stack="s", capabilities=CAPABILITIES, answers=answers)], 1e-9))

    every()
    return seen


def names(comparisons: Sequence[Comparison]) -> set[str]:
    """The laws that comparisons belong to."""
    return {comparison.tensor.partition(":")[0] for comparison in comparisons}


def test_each_law_has_something_that_breaks_it() -> None:
    kept = {(op, law) for op in CHECKS for (comparisons,) in [judged(op, COMPUTE[op], 1)] for law in names(comparisons)}
    assert kept == set(LAWLESS)


@pytest.mark.parametrize(("op", "law"), LAWLESS, ids=[f"{op}: {law}" for op, law in LAWLESS])
def test_a_law_that_is_broken_is_seen(op: str, law: str) -> None:
    broken = [names([one for one in comparisons if not one.passed]) for comparisons in judged(op, LAWLESS[op, law])]
    assert any(law in each for each in broken), broken


@pytest.mark.parametrize("check", CHECKS.values(), ids=lambda check: check.id)
def test_a_law_is_asked_of_each_stack_alone(check: Check) -> None:
    assert {plan.question for plan in check.plans} == {Question.PRECISION}
    assert check.plans[0].dtype == "float64"
    assert set(check.not_applicable.values()) == {"a law is asked of each stack alone"}


def test_an_infinity_is_excused_by_no_limit() -> None:
    """An error that is not finite either would be one of the harness."""

    def overflowing(attrs: Attributes, tensors: Tensors) -> Arrays:
        right = COMPUTE["silu"](attrs, tensors)
        return {**right, "y": np.full_like(right["y"], np.inf)}

    for comparisons in judged("silu", overflowing):
        assert {one.tensor for one in comparisons if not one.passed} == {"T permuted: y", "mirrored: y"}


def test_requests_that_several_laws_share_are_the_same_ones() -> None:
    """So that the engine sends them once."""
    (case,) = cases(CHECKS["attention"])
    plan = CHECKS["attention"].plans[0]
    keys = [request.key() for request in plan.requests(case)]
    assert len(keys) == 12
    assert len(set(keys)) == 8
    assert [request.key() for request in plan.requests(case)] == keys


def cases(check: Check) -> list[Case]:
    drawn: list[Case] = []

    @settings(max_examples=1, database=None, derandomize=True, deadline=None, phases=(Phase.generate,))
    @given(check.cases)
    def every(case: Case) -> None:
        drawn.append(case)

    every()
    return drawn
