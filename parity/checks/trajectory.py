"""Tier D: training, step by step. Each step starts from the reference's state, so that no error is the last step's (docs/theory.md)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contract.worker.capabilities import Elementary
from parity.checks import graph_judges
from parity.checks.check import Answered, Arrays, Ask, Case, Check, GraphNeeds, Judge, Plan, Question
from parity.checks.trajectory_case import INITIAL, RUNS, StepAsk, StepCase, cases
from parity.checks.trajectory_run import LAYOUT, STEPS
from parity.judge import perturb, verdict
from parity.judge.verdict import Comparison
from parity.reference.running_error import REFERENCE

EXACTLY = "what the contract gives"
"""Why a ledger must be the same number: no stack computes it."""

_AFTER_THE_GRAPH = ("sqrt", "reciprocal")
"""Functions that clipping and AdamW take."""


def worst_ulp(declared: Sequence[Elementary]) -> float:
    """The worst error that is declared of a function that a step takes, in ulp.

    Raises:
        ValueError: one is not declared.
    """
    of_step = [one.ulp for one in (*declared, *REFERENCE.declared) if one.function in _AFTER_THE_GRAPH]
    return max(graph_judges.worst_ulp(LAYOUT, declared), *of_step)


def same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Two stacks against each other: exactly what no stack computes, within both stacks' errors what each does."""
    assert isinstance(case, StepCase)
    (first,), (second,) = (stack.answers for stack in answered)
    return _judged(case, first, second, [one for stack in answered for one in stack.elementary], 2, false_alarm)


def precision(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    """Against the reference, which in float64 errs as much as what it judges."""
    assert isinstance(case, StepCase)
    (observed,) = answered[0].answers
    wanted = case.exact() | case.ledger() | case.initial()
    return _judged(case, observed, wanted, answered[0].elementary, 2 if case.dtype == "float64" else 1, false_alarm)


def _judged(
    case: StepCase, observed: Arrays, wanted: Arrays, declared: Sequence[Elementary], sides: int, false_alarm: float
) -> list[Comparison]:
    """The ledger, the loss and the norm, then m, v and the weights, which m and v lead to."""
    comparisons = [_ledger(name, observed[name], wanted[name]) for name in case.ledger()]
    for part in ("adapter", "m", "v", "updates") if case.initial() else ():
        comparisons.append(_initial(part, observed, wanted))
    rows = {name: np.atleast_1d(found) for name, found in case.response(worst_ulp(declared)).rows.items()}
    per_row = false_alarm / sum(found.size for found in rows.values())
    source = f"{RUNS} perturbed runs of the float64 reference, false alarm {per_row:.1e} a row (docs/theory.md, Trajectories)"
    for kind, names in _kinds(rows).items():
        found = np.stack([rows[name] for name in names])
        limits = perturb.row_limits(found, dtype=case.dtype, runs=RUNS, false_alarm=per_row, sides=sides)
        comparisons.append(graph_judges.over_layers(kind, names, observed, wanted, limits, source))
    return comparisons


def _ledger(name: str, observed: np.ndarray, wanted: np.ndarray) -> Comparison:
    """Bit for bit; a shorter list goes on with what no list holds."""
    longest = max(observed.size, wanted.size)
    first, second = (np.pad(one.reshape(-1), (0, longest - one.size), constant_values=-1) for one in (observed, wanted))
    return verdict.identical(name, first, second, EXACTLY)


def _initial(part: str, observed: Arrays, wanted: Arrays) -> Comparison:
    """One part of the state that a session begins with, all matrices."""
    names = [name for name in wanted if name.startswith(f"{INITIAL}{part}")]
    first, second = (np.concatenate([one[name].reshape(-1) for name in names]) for one in (observed, wanted))
    return verdict.identical(f"{INITIAL}{part}", first, second, EXACTLY)


def _kinds(names: Arrays) -> dict[str, list[str]]:
    """Kind -> names of that kind, layer by layer: loss and norm, then m, v and adapter.

    `m.layers.3.q_proj.lora_a` is of the kind `m.q_proj.lora_a`.
    """
    order = {"m": 1, "v": 2, "adapter": 3}
    found: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: order.get(name.partition(".")[0], 0)):
        before, marker, after = name.partition("layers.")
        found.setdefault(before + after.partition(".")[2] if marker else name, []).append(name)
    return found


def _ask(case: Case) -> tuple[Ask, ...]:
    assert isinstance(case, StepCase)
    return (StepAsk(case=case),)


def _plan(question: Question, dtype: str, judge: Judge) -> Plan:
    needs = GraphNeeds(model_types=(LAYOUT.model_type,), session=True)
    return Plan(question=question, dtype=dtype, requests=_ask, judge=judge, statistical=1, graph=needs)


FEW = 6
"""Steps of the shortest profile: warm-up's end, clipped and free ones, the first short one; of a captured step, replays."""

_NO_FAST_PATH = "a session takes the paths that a run takes; c.llama_fused_lora and the like hold each of them against the plain one"

CHECKS: tuple[Check, ...] = (
    Check(
        id="d.trajectory", tier="D", title=f"{STEPS} steps of a run, each from the reference's state", operations=(),
        plans=(_plan(Question.SAME_FUNCTION, "float64", same_function), _plan(Question.PRECISION, "float64", precision)),
        not_applicable={Question.FAST_PATH: _NO_FAST_PATH},
        cases=None, fixed_cases=lambda: cases("float64"), fixed_count=STEPS, few=FEW,
    ),
    Check(
        id="d.trajectory_float32", tier="D", title=f"{STEPS} steps of a run in a user's dtype", operations=(),
        plans=(_plan(Question.PRECISION, "float32", precision),),
        not_applicable={Question.SAME_FUNCTION: "asked in float64 by d.trajectory", Question.FAST_PATH: _NO_FAST_PATH},
        cases=None, fixed_cases=lambda: cases("float32"), fixed_count=STEPS, few=FEW,
    ),
)  # fmt: skip
