"""d.run: the first optimiser steps of a user's own run, each from the reference's state, as d.trajectory's are.

The run is the user's where the float64 reference can afford it; else the same contract with fewer tokens a step, and what was changed is
said. One check in float64, where stacks are held against each other, and one in the run's dtype.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from contract.run.spec import FineTuneContract
from contract.training.inputs import Run, prepare
from contract.worker.plan import GraphPlan
from parity.checks import own_run_batch, trajectory, trajectory_judges
from parity.checks.check import Check, Judge, Plan, Question
from parity.checks.own_run_batch import FEWEST, RUNS
from parity.checks.trajectory_case import StepCase, steps_of

ID = "d.run"
IDS = (ID, "d.run_float32", "d.run_bfloat16")

STEPS = 2
"""Optimiser steps: one from B = 0, where the run begins, and one after it."""

MICRO_BATCHES = 2
"""Of a step that is cut: enough for one to be added to another."""

FAR = 30
"""So many times AFFORDABLE is more than the reference is given even for the fewest tokens: the better part of an hour a step."""

_NO_FAST_PATH = "its steps take the production paths that the run takes, and are held against the reference itself"
_NESTED = "quant.double_quant=false"


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps that are asked of a contract.

    changed: fields that are other than the user's, KEY=VALUE. why_not: why there are none.
    """

    contract: FineTuneContract
    changed: tuple[str, ...] = ()
    why_not: str = ""

    def run(self, dtype: str) -> Run:
        """The run in a session of that dtype, ready to start."""
        return prepare(self.contract, dtype="float64" if dtype == "float64" else None)


def of(run: Run) -> Steps:
    """What of a run's steps the reference affords."""
    contract, plan = run.contract, run.plan
    if contract.exec.optimizer != "adamw":
        return Steps(contract=contract, why_not=f"exec.optimizer {contract.exec.optimizer} holds m and v in 8 bits: no float64 reference")
    cost = FEWEST * RUNS * own_run_batch.multiply_adds(plan)
    if cost > FAR * own_run_batch.AFFORDABLE:
        why_not = f"even {FEWEST} tokens a step would take the float64 reference {cost:.1e} multiply-adds, {_hours(cost)}"
        return Steps(contract=contract, why_not=f"{why_not}; c.run asks fewer")
    changes = _cut(contract, plan, tokens=_tokens(run))
    quant = contract.quant
    nested = quant.base == "nf4" and quant.double_quant
    changed = contract.model_copy(
        update={
            "exec": contract.exec.model_copy(update=changes),
            "quant": quant.model_copy(update={"double_quant": quant.double_quant and not nested}),
        }
    )
    told = tuple(f"exec.{name}={value}" for name, value in changes.items()) + ((_NESTED,) if nested else ())
    return Steps(contract=changed, changed=told)


def _tokens(run: Run) -> int:
    """Of the largest of the first steps that learn something, padding among them."""
    learning = (step for step in run.steps.steps() if step.batches)
    return max(sum(batch.ids_BT.size for batch in step.batches) for step in itertools.islice(learning, STEPS))


def _cut(contract: FineTuneContract, plan: GraphPlan, *, tokens: int) -> dict[str, int]:
    """Fields of exec that make a step affordable, where it is not: fewer micro-batches, then rows, then tokens of a row."""
    affordable, exec_ = own_run_batch.affordable(plan), contract.exec
    if tokens <= affordable:
        return {}
    accumulated = min(exec_.grad_accum, MICRO_BATCHES, max(1, affordable // FEWEST))
    length = min(exec_.seq_len, max(FEWEST, affordable // accumulated))
    rows = min(exec_.batch_size, max(1, affordable // (accumulated * length)))
    wanted = {"grad_accum": accumulated, "batch_size": rows, "seq_len": length}
    return {name: value for name, value in wanted.items() if value != getattr(exec_, name)}


def _hours(multiply_adds: float) -> str:
    """By what AFFORDABLE takes: the better part of a minute."""
    minutes = multiply_adds / own_run_batch.AFFORDABLE
    return f"about {minutes:.0f} minutes" if minutes < 120 else f"about {minutes / 60:.0f} hours"


_JUDGES: Mapping[Question, Judge] = {
    Question.SAME_FUNCTION: trajectory_judges.same_function,
    Question.PRECISION: trajectory_judges.precision,
}


def checks(run: Run) -> tuple[Check, ...]:
    """d.run, and the same in the run's dtype."""
    steps, dtype = of(run), run.contract.exec.compute_dtype
    both = (Question.SAME_FUNCTION, Question.PRECISION)
    return (
        _check(run, ID, steps, "float64", both, {}),
        _check(run, f"{ID}_{dtype}", steps, dtype, both[1:], {Question.SAME_FUNCTION: f"asked in float64 by {ID}"}),
    )


def _check(
    run: Run, check_id: str, steps: Steps, dtype: str, asked: tuple[Question, ...], others: Mapping[Question, str]
) -> Check:  # fmt: skip
    changed = f", with {', '.join(steps.changed)}" if steps.changed else ""
    title = f"the contract's first {STEPS} optimiser steps{changed}"
    if steps.why_not:
        return Check(
            id=check_id, tier="D", title=title, operations=(), plans=(), not_applicable=dict.fromkeys(Question, steps.why_not), cases=None
        )
    needs = trajectory.needs_of(run)
    plans = tuple(
        Plan(question=question, dtype=dtype, requests=trajectory.step_asks, judge=_JUDGES[question], statistical=1, graph=needs)
        for question in asked
    )
    return Check(
        id=check_id, tier="D", title=title, operations=(), plans=plans, not_applicable={**others, Question.FAST_PATH: _NO_FAST_PATH},
        cases=None, fixed_cases=lambda: cases(steps.run(dtype)), fixed_count=STEPS,
    )  # fmt: skip


def cases(run: Run) -> Iterator[StepCase]:
    """The first steps that learn something."""
    learning = (case for case in steps_of(run, rows=_tokens(run)) if case.step.batches)
    return itertools.islice(learning, STEPS)
