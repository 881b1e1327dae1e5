"""The checks of the laws of whole graphs: what is asked for them, and how their sides are judged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

from contract.worker.capabilities import Elementary
from contract.worker.process import StackProcess
from parity.checks import graph_judges
from parity.checks.check import Answered, Arrays, Case, Check, GraphNeeds, Plan, Question, Tell
from parity.checks.graph_case import GraphAsk, GraphCase
from parity.checks.graph_draws import MOST_GRAPHS, Draw
from parity.checks.graph_laws import LAWS, PACKED_LAWS, Law
from parity.checks.graph_layouts import OPTIONS, PLAIN
from parity.find import bisect
from parity.find.fault import Fault
from parity.judge.perturb import Response
from parity.judge.verdict import Comparison
from parity.reference.rounding import together

ALONE = "a law is asked of each stack alone"
SAME_NUMBERS = "the same operations on the same numbers"
LAWS_PER_EXAMPLE = 12
"""How many examples of a primitive one example of all laws stands for."""


def checks() -> Iterator[Check]:
    """The laws of each architecture, and those of packing and padding."""
    for model_type, recipes in PLAIN.items():
        draw = Draw(recipes=recipes[:1])
        yield _check(f"c.law_{model_type}", f"laws of a small {model_type}", LAWS, draw, draw.needs())
    for model_type, recipes in OPTIONS.items():
        draw = Draw(recipes=recipes[:1])
        title = f"a small {model_type}: packed is separate, padding changes nothing"
        yield _check(f"c.law_{model_type}_packed", title, PACKED_LAWS, draw, dataclasses.replace(draw.needs(), packing=True))


def _check(name: str, title: str, laws: Sequence[Law], draw: Draw, needs: GraphNeeds) -> Check:
    plan = Plan(
        question=Question.PRECISION, dtype="float64", requests=lambda case: _requests(case, laws),
        judge=lambda case, answered, false_alarm: _judge(case, answered, false_alarm, laws), statistical=1, graph=needs,
        ahead=graph_judges.ahead,
    )  # fmt: skip
    return Check(
        id=name, tier="C", title=title, operations=(), plans=(plan,), cases=draw.cases(), cost=LAWS_PER_EXAMPLE, most=MOST_GRAPHS,
        not_applicable=dict.fromkeys((Question.SAME_FUNCTION, Question.FAST_PATH), ALONE),
        locate=lambda case, plan, process, declared, tell: _locate(case, process, declared, tell, laws),
    )  # fmt: skip


def _asked(case: Case, laws: Sequence[Law]) -> list[tuple[Law, Sequence[GraphCase]]]:
    assert isinstance(case, GraphCase)
    return [(law, case.once(law.name, partial(law.changed, case))) for law in laws]


def _requests(case: Case, laws: Sequence[Law]) -> tuple[GraphAsk, ...]:
    """The case itself, then what each law asks, the same plan's together: a stack holds one graph at a time."""
    assert isinstance(case, GraphCase)
    return tuple(GraphAsk(case=one, plan=one.plan) for one in (case, *(one for _, changed in _asked(case, laws) for one in changed)))


def _judge(case: Case, answered: Sequence[Answered], false_alarm: float, laws: Sequence[Law]) -> list[Comparison]:
    assert isinstance(case, GraphCase)
    (stack,) = answered
    first, *others = stack.answers
    _, response = graph_judges.reference(case, stack.elementary)
    comparisons: list[Comparison] = []
    for law, changed in _asked(case, laws):
        mine, others = others[: len(changed)], others[len(changed) :]
        observed, expected = law.sides(case, first, mine)
        if law.exact:
            found = graph_judges.exactly(case.plan, observed, expected, SAME_NUMBERS)
        else:
            allowed = response if law.own is None else _with_own(response, law.own(case, mine))
            share = false_alarm / len(laws)
            found = graph_judges.by_kind(case.plan, observed, expected, allowed, "float64", 2, share)
        comparisons += [dataclasses.replace(one, tensor=f"{law.name}: {one.tensor}", relative=None) for one in found]
    return comparisons


def _with_own(response: Response, own: Arrays) -> Response:
    return Response(runs=response.runs, rows={**response.rows, **{name: together(response.rows[name], size) for name, size in own.items()}})


def _locate(case: Case, process: StackProcess, declared: Sequence[Elementary], tell: Tell, laws: Sequence[Law]) -> list[Fault]:
    """The operations at fault in the first of a law's cases that has any; a law that only the whole breaks has none."""
    assert isinstance(case, GraphCase)
    for one in (case, *(one for _, changed in _asked(case, laws) for one in changed)):
        if found := bisect.faults(one, one.plan, process, declared, tell):
            return found
    return []
