"""Tier A's common part: how one operation is asked and judged against its reference, in each question.

same_function in float64, stack against stack; precision in float64 and in float32, each stack against the reference. Limits are the
reference's running errors (parity/reference/running_error.py) for what the stack declares, and the reference's own beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis.strategies import SearchStrategy

from contract.worker.capabilities import Elementary
from parity.checks.check import Answered, Arrays, Case, Check, Judge, Plan, Question, Request
from parity.judge import bounds
from parity.judge.verdict import Comparison, within
from parity.reference.primitive import Reference
from parity.reference.running_error import REFERENCE, Arithmetic, Computed

NO_FAST_PATH = "a stack has one path for this operation"
SOURCE = "running error analysis (Higham 2002, section 3.3)"
DTYPES = ("float64", "float32")


def check(
    id: str,
    op: str,
    reference: Reference,
    cases: SearchStrategy[Case],
    *,
    title: str,
    dtypes: Sequence[str] = DTYPES,
    special: bool = False,
) -> Check:
    """A check of one operation by its reference.

    Args:
        dtypes: those that cases have inputs for.
        special: the cases hold NaN or infinities on purpose, whose classes and signs are then compared.
    """
    same = Plan(
        question=Question.SAME_FUNCTION, dtype="float64", requests=requests(op, "float64"), judge=same_function(reference, special=special)
    )
    precise = [
        Plan(question=Question.PRECISION, dtype=dtype, requests=requests(op, dtype), judge=precision(reference, dtype, special=special))
        for dtype in dtypes
    ]
    return Check(
        id=id,
        tier="A",
        title=title,
        operations=(op,),
        cases=cases,
        plans=(same, *precise),
        not_applicable={Question.FAST_PATH: NO_FAST_PATH},
    )


def exact_check(id: str, op: str, reference: Reference, cases: SearchStrategy[Case], *, title: str) -> Check:
    """A check on inputs for which every legal order and rounding gives the same number: it must come out as the reference has it."""
    plans = [
        Plan(question=question, dtype=dtype, requests=requests(op, dtype), judge=exactly(reference, dtype))
        for question, dtype in (
            (Question.SAME_FUNCTION, "float64"),
            (Question.PRECISION, "float64"),
            (Question.PRECISION, "float32"),
        )
    ]
    return Check(
        id=id, tier="A", title=title, operations=(op,), cases=cases, plans=tuple(plans), not_applicable={Question.FAST_PATH: NO_FAST_PATH}
    )


def requests(op: str, dtype: str) -> Any:
    """One `compute` request on a case's inputs in a dtype."""
    return lambda case: (Request(op=op, attrs={**case.attrs, "dtype": dtype}, tensors=case.inputs[dtype]),)


def precision(reference: Reference, dtype: str, *, special: bool = False) -> Judge:
    """One stack against the reference: the stack's error and the reference's own."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        (one,) = answered
        exact = evaluate(reference, case, dtype)
        allowed = errors(reference, case, dtype, one.elementary)
        return [
            within(name, one.answers[0][name], exact[name].value, bounds.Bound(allowed[name] + exact[name].error, SOURCE), special=special)
            for name in exact
        ]

    return judge


def same_function(reference: Reference, *, special: bool = False) -> Judge:
    """Two stacks against each other: the sum of what each may err by."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        first, second = answered
        allowed = [errors(reference, case, "float64", one.elementary) for one in answered]
        return [
            within(
                name, first.answers[0][name], second.answers[0][name],
                bounds.Bound(allowed[0][name] + allowed[1][name], f"the sum of both: {SOURCE}"), special=special,
            )
            for name in allowed[0]
        ]  # fmt: skip

    return judge


def exactly(reference: Reference, dtype: str) -> Judge:
    """Every stack of the cell gives the reference's value itself."""
    source = f"exact in {dtype}, in any order"

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        exact = evaluate(reference, case, dtype)
        return [
            within(f"{name} of {one.stack}", one.answers[0][name], exact[name].value, bounds.Bound(np.zeros(exact[name].shape), source))
            for one in answered
            for name in exact
        ]

    return judge


def evaluate(reference: Reference, case: Case, dtype: str) -> Mapping[str, Computed]:
    """The exact answer on a case's inputs of a dtype, and the reference's own error; made once a case."""
    return case.once(f"exact {dtype}", lambda: reference(case.inputs[dtype], case.attrs, REFERENCE))


def errors(reference: Reference, case: Case, dtype: str, declared: Sequence[Elementary]) -> Arrays:
    """What a stack that declares so much may err by; made once a case and declaration."""
    every = tuple(declared)  # of other dtypes too: RoPE's tables are made in float64, whatever they are cast to

    def made() -> Arrays:
        return {name: one.error for name, one in reference(case.inputs[dtype], case.attrs, Arithmetic(dtype, every)).items()}

    return case.once(f"errors {dtype} {every}", made)
