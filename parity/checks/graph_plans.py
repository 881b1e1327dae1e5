"""How tier C asks its questions: the requests, the judges and what a stack must declare; and checks made of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from contract.worker.capabilities import Elementary
from contract.worker.plan import GraphPlan, Path
from contract.worker.process import StackProcess
from parity.checks import graph_draws, graph_judges, graph_sections, proxy
from parity.checks.check import Ask, Case, Check, GraphNeeds, Judge, Plan, Question, Tell
from parity.checks.graph_case import ForwardAsk, GraphAsk, GraphCase
from parity.checks.graph_draws import Draw
from parity.checks.graph_sections import SectionAsk, ShownAsk
from parity.find import bisect
from parity.find.fault import Fault

GRAPHS_PER_EXAMPLE = 4
"""How many examples of a primitive a drawn graph stands for."""
SEVERAL_PER_EXAMPLE = 12
"""The same where every graph of the check is asked once anyway."""
NARROW_PER_EXAMPLE = 24
"""The same of graphs in bfloat16, which need a reference of their own: a quick run asks one of each kind, and draws none."""
ONCE_PER_EXAMPLE = 10_000
"""The same of what only the longest profile draws: any other asks the first graph alone."""

NO_FAST_PATH = {
    Question.FAST_PATH: "the graph is the plain path; c.llama_nf4, c.llama_checkpoint and the other paths' checks hold those against it"
}
ONLY_PRECISION = {
    Question.SAME_FUNCTION: "asked in float64, where a rounding hides nothing, by c.llama and the like",
    Question.FAST_PATH: "asked in float32 by c.llama_nf4, c.llama_checkpoint and the other paths' checks",
}
ONLY_FAST_PATH = dict.fromkeys((Question.SAME_FUNCTION, Question.PRECISION), "asked of the plain path by c.llama and the like")


def _ask(dtype: str, *paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        plan = case.plan.model_copy(update={"dtype": dtype, "paths": paths})
        return GraphAsk(case=case, plan=plan), ForwardAsk(case=case, plan=plan)

    return asks


def _ask_both(dtype: str, *paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    return lambda case: (*_ask(dtype, *paths)(case), *_ask(dtype)(case))


def _ask_sections(*paths: Path) -> Callable[[Case], tuple[Ask, ...]]:
    """The whole graph in bfloat16, then sections of it alone: on the reference's values, and on the graph's own."""

    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        plan = case.plan.model_copy(update={"dtype": "bfloat16", "paths": paths})
        sections = graph_sections.asked(plan)
        alone = (SectionAsk(case=case, plan=plan, section=section) for section in sections)
        shown = (ShownAsk(case=case, plan=plan, section=section) for section in sections)
        return *_ask("bfloat16", *paths)(case), *alone, *shown

    return asks


def locate(case: Case, plan: Plan, process: StackProcess, declared: Sequence[Elementary], tell: Tell) -> list[Fault]:
    """The operations at fault (Check.locate)."""
    assert isinstance(case, GraphCase)
    return bisect.faults(case, asked_plan(case, plan), process, declared, tell)


def asked_plan(case: GraphCase, plan: Plan) -> GraphPlan:
    """The graph that a question is about: of a fast path, that one and not the plain one."""
    first = plan.requests(case)[0]
    assert isinstance(first, GraphAsk)
    return first.plan


def _plan(question: Question, dtype: str, judge: Judge, needs: GraphNeeds, *paths: Path) -> Plan:
    requests = _ask_both(dtype, *paths) if question is Question.FAST_PATH else _ask(dtype, *paths)
    return Plan(
        question=question, dtype=dtype, requests=requests, judge=judge, statistical=1, graph=dataclasses.replace(needs, paths=paths),
        ahead=graph_judges.ahead_bfloat16 if dtype == "bfloat16" else graph_judges.ahead,
    )  # fmt: skip


def plain(needs: GraphNeeds) -> tuple[Plan, ...]:
    """The plain path's questions."""
    return (
        _plan(Question.SAME_FUNCTION, "float64", graph_judges.same_function, needs),
        _plan(Question.PRECISION, "float64", graph_judges.precision("float64"), needs),
        _plan(Question.PRECISION, "float32", graph_judges.precision("float32"), needs),
    )


def quantized(needs: GraphNeeds) -> tuple[Plan, ...]:
    """Those of a graph whose linears are NF4."""
    return (
        _plan(Question.SAME_FUNCTION, "float64", graph_judges.same_function, needs),
        _plan(Question.PRECISION, "float64", graph_judges.precision("float64"), needs),
        _plan(Question.PRECISION, "float32", graph_judges.precision("float32"), needs, "nf4_linear"),
        fast_path(needs, "nf4_linear"),
    )


def fast_path(needs: GraphNeeds, *paths: Path, dtype: str = "float32") -> Plan:
    """Production paths, all of them taken at once, against the plain graph."""
    return _plan(Question.FAST_PATH, dtype, graph_judges.fast_path(dtype), needs, *paths)


def bfloat16(needs: GraphNeeds, *paths: Path) -> Plan:
    """How precise a graph in bfloat16 is, and each of its operations."""
    return Plan(
        question=Question.PRECISION, dtype="bfloat16", requests=_ask_sections(*paths), judge=graph_judges.precision_bfloat16(*paths),
        statistical=1, graph=dataclasses.replace(needs, paths=paths), ahead=graph_judges.ahead_bfloat16,
    )  # fmt: skip


def drawn_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str], draw: Draw | proxy.Draw, *, each: bool = False
) -> Check:
    """A check of drawn graphs.

    Args:
        each: every graph is asked once in any run, beside those that are drawn.
    """
    return Check(
        id=name, tier="C", title=title, operations=(), plans=plans, not_applicable=not_applicable, cases=draw.cases(),
        cost=SEVERAL_PER_EXAMPLE if each else GRAPHS_PER_EXAMPLE, most=graph_draws.MOST_GRAPHS, fixed_cases=draw.each if each else None,
        fixed_count=len(draw.recipes) if each else 0, locate=locate,
    )  # fmt: skip


def first_check(
    name: str, title: str, plans: tuple[Plan, ...], not_applicable: Mapping[Question, str], draw: Draw | proxy.Draw,
    *, cost: int = ONCE_PER_EXAMPLE,
) -> Check:  # fmt: skip
    """A check of which any run asks the first graph: the others are drawn where there is time."""
    check = drawn_check(name, title, plans, not_applicable, draw)
    return dataclasses.replace(check, cost=cost, least=0, fixed_cases=lambda: itertools.islice(draw.each(), 1), fixed_count=1)
