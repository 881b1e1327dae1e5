"""Tier C on sequences of one token: every sum over tokens has one term, and no tensor has the shape that it has elsewhere.

A token's logits do not depend on what follows it, so those of the first token of a longer sequence are what must come out, with their
response.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from contract.worker import graph
from contract.worker.plan import GraphPlan
from contract.worker.process import Pending, StackProcess
from parity.checks import graph_draws, graph_judges
from parity.checks.check import Answered, Arrays, Ask, Case, Check, Judge, Plan, Question
from parity.checks.graph_case import GraphCase, open_graph, require_answer
from parity.checks.graph_draws import Draw
from parity.checks.graph_layouts import PLAIN
from parity.judge import perturb
from parity.judge.verdict import Comparison, rows

LOGITS = "logits"
ONCE = 10_000
"""How many examples of a primitive an example stands for: but for the longest profile, a run asks the fixed one alone."""
_ALIKE = ("mistral", "qwen2")
"""Architectures that on one token have the operations of a Llama."""
_NOT_HERE = "asked of longer sequences by c.llama_checkpoint and the like; of what is generated token by token by e.kv_cache"


@dataclass(frozen=True, kw_only=True, eq=False)
class OneTokenAsk:
    """The logits of each sequence's first token, alone (an Ask)."""

    case: GraphCase
    plan: GraphPlan

    def key(self) -> tuple[object, ...]:
        """Equal for the same case and plan."""
        return "one token", id(self.case), self.plan.model_dump_json()

    def send(self, process: StackProcess) -> Pending:
        """Has the graph opened, and asks; waits for the first and not for the second."""
        open_graph(process, self.plan, self.case.weights, self.case.adapter)
        ids = np.ascontiguousarray(self.case.batch.ids[:, :1])
        return process.submit("forward", {"graph": process.graph, "taps": [LOGITS]}, {"ids": ids})

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against the table of taps."""
        sequences = self.case.batch.ids.shape[0]
        require_answer(stack, graph.expected_graph_answer(self.plan, (LOGITS,), sequences, 1, gradients=False), answered)


def checks() -> Iterator[Check]:
    """Of each architecture, its second plain graph."""
    for model_type, recipes in PLAIN.items():
        draw = Draw(recipes=recipes[1:])
        plans = tuple(
            Plan(question=question, dtype=dtype, requests=_ask(dtype), judge=judge, statistical=1, graph=draw.needs())
            for question, dtype, judge in (
                (Question.SAME_FUNCTION, "float64", _same_function),
                (Question.PRECISION, "float64", _precision("float64")),
                (Question.PRECISION, "float32", _precision("float32")),
            )
        )
        yield Check(
            id=f"c.{model_type}_one_token", tier="C", title=f"a small {model_type} on sequences of one token", operations=(), plans=plans,
            not_applicable={Question.FAST_PATH: _NOT_HERE}, cases=draw.cases(), cost=ONCE, least=0, most=graph_draws.MOST_GRAPHS,
            fixed_cases=draw.each, fixed_count=len(draw.recipes), nightly=model_type in _ALIKE, locate=lambda *about: (),
        )  # fmt: skip


def _ask(dtype: str) -> Callable[[Case], tuple[Ask, ...]]:
    def asks(case: Case) -> tuple[Ask, ...]:
        assert isinstance(case, GraphCase)
        return (OneTokenAsk(case=case, plan=case.plan.model_copy(update={"dtype": dtype})),)

    return asks


def _same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    first, second = (stack.answers[0][LOGITS] for stack in answered)
    return _judged(case, answered, (first, second), "float64", 2, false_alarm)


def _precision(dtype: str) -> Judge:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        observed = answered[0].answers[0][LOGITS]
        return _judged(case, answered, (observed, None), dtype, 2 if dtype == "float64" else 1, false_alarm)

    return judge


def _judged(
    case: Case, answered: Sequence[Answered], pair: tuple[np.ndarray, np.ndarray | None], dtype: str, sides: int, false_alarm: float
) -> list[Comparison]:
    """Against the other stack, or where there is none against the reference."""
    assert isinstance(case, GraphCase)
    trace, response = graph_judges.reference(case, [one for stack in answered for one in stack.elementary])
    of_rows = response.rows[LOGITS][:, :1]
    limits = perturb.row_limits(of_rows, dtype=dtype, runs=response.runs, false_alarm=false_alarm / of_rows.size, sides=sides)
    observed, other = pair
    wanted = trace.taps[LOGITS][:, :1] if other is None else other
    return [rows(LOGITS, observed, wanted, limits, f"{response.runs} perturbed runs of the float64 reference (docs/theory.md)")]
