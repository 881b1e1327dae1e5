"""Sections of a graph, one at a time, on the reference's own values: what is asked of a stack, and how precise each operation must be.

A section that is given the reference's inputs can't be wrong because of an earlier one, and an operation that is given the
reference's taps can't be wrong because of another one. In bfloat16 every operation is judged so: along a whole graph its roundings grow
over what an operation loses that computes in bfloat16 where it must not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from contract.worker import graph, taps
from contract.worker.graph import POSITIONS, ROPE_TABLES, SEGMENTS
from contract.worker.plan import GraphPlan
from contract.worker.process import Pending, StackProcess
from contract.worker.taps import EMBEDDING, HEAD
from parity.checks.check import Arrays
from parity.checks.graph_case import GraphAsk, GraphCase, open_graph, require_answer
from parity.judge import perturb
from parity.judge.verdict import Comparison, rows
from parity.reference.graph import Trace
from parity.reference.proxy import oracle

Limits = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Exact values and the limits on each element's error, by name."""

BY_ELEMENT = "roundings to bfloat16, each u of what it rounds, and the response to float32's inside (docs/theory.md)"

RUNS = 30
"""Perturbed runs behind a threshold."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SectionAsk:
    """One section with every tap but the last overridden, and every cotangent given (an Ask)."""

    case: GraphCase
    plan: GraphPlan
    section: str

    def key(self) -> tuple[object, ...]:
        """Equal for the same section of the same case and plan."""
        return "section", self.section, id(self.case), self.plan.model_dump_json()

    def send(self, process: StackProcess) -> Pending:
        """Has the graph opened, and asks; waits for the first and not for the second."""
        open_graph(process, self.plan, self.case.weights, self.case.adapter)
        return process.submit("block", {"graph": process.graph, "section": self.section}, self.given())

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against the table of taps."""
        batch, tokens = self.case.batch.ids.shape
        require_answer(stack, graph.expected_block_answer(self.plan, self.section, self.given(), batch, tokens), answered)

    def given(self) -> dict[str, np.ndarray]:
        """The request's tensors."""

        def make() -> dict[str, np.ndarray]:
            right = self.case.in_dtype(self.plan.dtype)
            return forced(right, self.plan, self.section, inputs(right, self.plan, self.section, passed(right)))

        return self.case.once(f"forced {self.section} {self.plan.dtype} {self.plan.paths}", make)


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownAsk:
    """One section with every tap but the last overridden by what the whole graph showed (an Ask).

    Where a stack goes on with the values that it shows, rounded as it says, each operation then has the operands that it had in the whole
    graph, and gives the same numbers.
    """

    case: GraphCase
    plan: GraphPlan
    section: str

    def key(self) -> tuple[object, ...]:
        """Equal for the same section of the same case and plan."""
        return "shown", self.section, id(self.case), self.plan.model_dump_json()

    def send(self, process: StackProcess) -> Pending:
        """Has the graph opened and its taps shown, which it waits for; and asks, which it does not."""
        whole = GraphAsk(case=self.case, plan=self.plan).send(process).result().tensors
        return process.submit("block", {"graph": process.graph, "section": self.section}, self._given(whole))

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds the answer against the table of taps."""
        SectionAsk(case=self.case, plan=self.plan, section=self.section).require(stack, answered)

    def _given(self, whole: Arrays) -> dict[str, np.ndarray]:
        """As of SectionAsk, which has the reference's values; cotangents stay the reference's."""
        given = SectionAsk(case=self.case, plan=self.plan, section=self.section).given()
        overridden = [name.removeprefix("override.") for name in given if name.startswith("override.")]
        places = {name: name if name in ROPE_TABLES else taps.prefix(self.section) + name for name in overridden}
        return given | {f"override.{name}": whole[full] for name, full in places.items()} | self._input(whole)

    def _input(self, whole: Arrays) -> dict[str, np.ndarray]:
        names = taps.sections(self.plan.blocks)
        if self.section == EMBEDDING:
            return {}
        before = names[names.index(self.section) - 1]
        first = "embedding" if self.plan.graph == "qlora_proxy_v1" else taps.entering(self.plan.layout)
        return {"input": whole[first if before == EMBEDDING else f"{before}.output"]}


def asked(plan: GraphPlan) -> tuple[str, ...]:
    """The embedding, the last block and the head: all blocks have the same operations, and what tells them apart shows in float64."""
    names = taps.sections(plan.blocks)
    return (EMBEDDING, *names[1:-1][-1:], HEAD)


def passed(case: GraphCase) -> Trace:
    """The reference's pass: the inputs and cotangents of each section, and RoPE's tables."""
    return case.once("passed", lambda: oracle(case.plan, case.weight, case.adapter).graph(case.batch, keep=lambda it: it in ROPE_TABLES))


def inputs(case: GraphCase, plan: GraphPlan, section: str, trace: Trace) -> dict[str, np.ndarray]:
    """What a section is given: the reference's values, rounded to the plan's dtype."""
    batch, dtype = case.batch.tensors(), plan.dtype
    if section == EMBEDDING:
        return {name: array for name, array in batch.items() if name in ("ids", POSITIONS)}
    given = {"input": trace.inputs[section].astype(dtype)}
    if section == HEAD:
        own = {name: array for name, array in batch.items() if name in ("labels", SEGMENTS)}
        return {**given, **own, "bar.loss": np.ones((), dtype=graph.dtype_of(plan, "loss"))}
    names = taps.sections(case.plan.blocks)
    after = names[names.index(section) + 1]
    places = {name: array for name, array in batch.items() if name in (POSITIONS, SEGMENTS)}
    tables = {f"override.{name}": table.astype(dtype) for name, table in trace.taps.items()}
    return {**given, **places, **tables, "bar.output": trace.input_bars[after].astype(dtype)}


def forced(case: GraphCase, plan: GraphPlan, section: str, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The section's request with every tap but the last overridden, and every cotangent given."""
    own = [tap.name for tap in taps.section_taps(plan, section)]
    right, wide = oracle(case.plan, case.weight, case.adapter), widened(given)
    values, bars = right.section(section, wide), right.cotangents(section, wide)
    return {
        **given,
        **{f"override.{name}": values[name].astype(graph.dtype_of(plan, name)) for name in own[:-1] if name in values},
        **{f"bar.{name}": np.asarray(bar, dtype=graph.dtype_of(plan, name)) for name, bar in bars.items() if name in own},
    }


def operation_limits(case: GraphCase, section: str, tensors: Arrays, ulp: float, false_alarm: float) -> Limits:
    """What a bfloat16 section answers of which every tap is overridden, and how far each element may be off.

    Args:
        case: as `in_dtype` makes it for bfloat16.
        false_alarm: of all elements together.
    """
    return perturb.operation_limits(
        case.plan, section, case.weight, case.adapter, widened(tensors), runs=RUNS, seed=case.seed, ulp=ulp,
        false_alarm=lambda elements: false_alarm / elements,
    )  # fmt: skip


def operations(answer: Arrays, limits: Limits) -> list[Comparison]:
    """Each tensor of such an answer, element by element."""
    exact, allowed = limits
    return [_by_element(name, got, exact[name], allowed[name]) for name, got in answer.items()]


def _by_element(name: str, got: np.ndarray, exact: np.ndarray, limits: np.ndarray) -> Comparison:
    """As rows of one element each."""
    observed, wanted, limits = (np.atleast_1d(array) for array in (got.astype(np.float64), exact, limits))
    comparison = rows(name, observed[..., None], wanted[..., None], limits, BY_ELEMENT)
    assert comparison.where is not None
    return dataclasses.replace(comparison, where=comparison.where[:-1], unit="absolute difference")


def widened(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Floats as float64; ids, labels and the like as they are."""
    return {name: array if array.dtype.kind in "iu" else array.astype(np.float64) for name, array in tensors.items()}
