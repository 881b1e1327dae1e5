"""Laws of training, each stack alone: how a step's rows are cut into micro-batches, padded or packed changes nothing of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from contract.training.stepwise import PARTS
from parity.checks import trajectory_judges
from parity.checks.check import Answered, Ask, Case
from parity.checks.trajectory_case import StepAsk, StepCase, case_of, opened_run, steps_of
from parity.checks.trajectory_run import PACKED, PACKED_GPT2, RAGGED, WHOLE, WHOLE_GPT2, TrainingRun
from parity.judge.verdict import Comparison
from parity.reference.trajectory import LOSS, NORM

AT = 2
"""The step that is compared: its learning rate, m and v are not zero."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LawCase(Case):
    """The same step of two runs that differ in how they cut its rows, from one state."""

    one: StepCase
    other: StepCase


def cases() -> Iterator[LawCase]:
    """Packed and accumulated, packed with learned positions, and accumulated alone, against all rows side by side in one batch."""
    yield _case(PACKED, "packed into micro-batches", WHOLE)
    yield _case(PACKED_GPT2, "packed, with learned positions", WHOLE_GPT2)
    yield _case(RAGGED, "in micro-batches of ragged counts", WHOLE)


def _case(cut: TrainingRun, how: str, in_one: TrainingRun) -> LawCase:
    _, run = opened_run(cut, "float64")
    one = next(case for case in steps_of(run) if case.step.number == AT)
    _, whole = opened_run(in_one, "float64")
    step = next(whole.steps.steps(AT))
    other = case_of(f"step {AT + 1} in one batch", whole, step, one.before)
    return LawCase(name=f"step {AT + 1}, {how}, and in one batch", inputs=one.inputs, one=one, other=other)


def asks(case: Case) -> tuple[Ask, ...]:
    """The step of either run."""
    assert isinstance(case, LawCase)
    return StepAsk(case=case.one), StepAsk(case=case.other)


def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """The same loss, norm, m, v and weights, within the errors of both; over the same tokens of the same rows."""
    assert isinstance(case, LawCase)
    (observed, wanted), declared = answered[0].answers, answered[0].elementary
    ulp = trajectory_judges.worst_ulp(case.one.run.layout, declared)
    first, second = case.one.response(ulp).rows, case.other.response(ulp).rows
    names = (LOSS, NORM, *(f"{part}.{name}" for part in PARTS for name in case.one.before.adapter))
    both = {name: np.hypot(first[name], second[name]) for name in names}
    told = [
        trajectory_judges.ledger("tokens", observed["tokens"], wanted["tokens"]),
        trajectory_judges.ledger("samples, sorted", np.sort(observed["samples"]), np.sort(wanted["samples"])),
    ]
    return told + trajectory_judges.within(both, observed, wanted, dtype="float64", sides=1, false_alarm=false_alarm, of="Laws")
