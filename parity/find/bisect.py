"""Which operations of a stack are wrong: each section, and each operation inside it, on the reference's inputs.

A section that is given the reference's inputs can't be wrong because of an earlier one, and an operation that is given the
reference's taps can't be wrong because of another one: a local fault is told from drift, and every independent fault is found.
The reference has the weights and values of one section at a time in memory, and the inputs of a few (parity/reference/backwards.py). So has
the stack, where the whole graph would take more than a quarter of the memory that is free; else it has the whole graph open, as the run
had that failed.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from contract.worker import graph, taps
from contract.worker.capabilities import Elementary
from contract.worker.plan import GraphPlan
from contract.worker.process import StackProcess
from parity.checks.check import Tell
from parity.checks.graph_case import GraphAsk, GraphCase, open_graph, require_answer
from parity.checks.graph_judges import USED, by_kind, exact, reference, used, worst_ulp
from parity.checks.graph_sections import RUNS, ShownAsk, asked, forced, inputs, operation_limits, operations, widened
from parity.find.fault import Fault
from parity.judge import confidence, perturb
from parity.judge.verdict import Comparison, identical, rows
from parity.reference.backwards import backwards
from parity.reference.proxy import oracle

NO_SINGLE_OPERATION = "no single operation: a tap is shown, and another value used"
BETWEEN_SECTIONS = "no section: each is right alone, and wrong is how the whole graph joins them"

Direction = Literal["forward", "backward"]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One operation that is wrong in one section."""

    operation: str
    section: str
    direction: Direction
    comparison: Comparison


def faults(
    case: GraphCase,
    plan: GraphPlan,
    process: StackProcess,
    declared: Sequence[Elementary],
    tell: Tell = lambda text: None,
) -> list[Fault]:
    """Every operation that is wrong in a stack's graph of `plan`, in the order of computation.

    Raises:
        HarnessError, RequestFailed: as StackProcess.request.
    """
    ulp, right = worst_ulp(plan.layout, declared), case.in_dtype(plan.dtype)
    sections = taps.sections(plan.blocks)
    of_section: dict[str, list[_Found]] = {}
    whole = _bytes(plan) * 4 <= _free_bytes()
    for section, trace in backwards(oracle(right.plan, right.weight, right.adapter), right.plan, right.batch):
        tell(f"{process.name}: looking for the operation in {section} ({len(of_section)} of {len(sections)} done)")
        given = inputs(right, plan, section, trace)
        of_section[section] = _Section(case, plan if whole else _alone(plan, section), process, section, given, ulp).faults()
        right.forget()
    found = [one for section in sections for one in of_section[section]]
    if not found and whole:
        tell(f"{process.name}: every section is right; looking at the whole graph")
        found += _whole(case, plan, process, declared)
    return _grouped(process.name, found)


def _whole(case: GraphCase, plan: GraphPlan, process: StackProcess, declared: Sequence[Elementary]) -> list[_Found]:
    """What is wrong with the whole graph, where nothing is with any section of it."""
    ask = GraphAsk(case=case, plan=plan)
    answer = ask.send(process).result().tensors
    ask.require(process.name, answer)
    trace, response = reference(case.in_dtype(plan.dtype), declared)
    sides = 2 if plan.dtype == "float64" else 1
    verdicts = by_kind(case.plan, answer, exact(trace, answer), response, plan.dtype, sides, confidence.FALSE_ALARM)
    case.forget()
    if plan.dtype == perturb.STORED:
        verdicts += [
            one
            for section in asked(plan)
            for one in used(section, ShownAsk(case=case, plan=plan, section=section).send(process).result().tensors, answer)
        ]
    wrong = next((one for one in verdicts if not one.passed), None)
    return [] if wrong is None else [_Found(operation=BETWEEN_SECTIONS, section="whole", direction="forward", comparison=wrong)]


def _alone(plan: GraphPlan, section: str) -> GraphPlan:
    return plan.model_copy(update={"sections": (section,)})


def _bytes(plan: GraphPlan) -> int:
    """What the plan's weights take in its dtype."""
    return sum(math.prod(shape) for shape, _ in graph.weights(plan).values()) * np.dtype(plan.dtype).itemsize


def _free_bytes() -> int:
    """0 where the system does not say, as macOS."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except ValueError:
        return 0


class _Section:
    """One section of one stack, held against the reference on the same inputs."""

    def __init__(
        self, case: GraphCase, plan: GraphPlan, process: StackProcess, section: str, given: Mapping[str, np.ndarray], ulp: float
    ) -> None:
        self._case, self._section, self._given, self._ulp = case.in_dtype(plan.dtype), section, given, ulp
        self._plan, self._process = plan, process
        self._taps = {tap.name: tap for tap in taps.section_taps(plan, section)}
        open_graph(process, plan, case.weights, case.adapter)

    def faults(self) -> list[_Found]:
        """The operations at fault; none where the whole section is right."""
        whole = [one for one in self._compare(self._given) if not one.passed]
        if not whole and self._plan.dtype != perturb.STORED:  # where each operation alone is held more closely
            return []
        local = list(self._operations())
        if not local and not whole:
            return list(self._shown())
        if local:
            return local
        return [_Found(operation=NO_SINGLE_OPERATION, section=self._section, direction="forward", comparison=whole[0])]

    def _shown(self) -> Iterator[_Found]:
        """Taps that are shown and not used: put in their own place, they change what follows from them."""
        first = self._answer(self._given)
        own = [name for name in self._taps if name in first]
        every = {f"override.{name}": first[name] for name in own[:-1]}
        if not self._changed(first, every):
            return
        for name in own[:-1]:
            if changed := self._changed(first, {f"override.{name}": first[name]}):
                shown = dataclasses.replace(changed[0], tensor=name)
                yield _Found(operation=NO_SINGLE_OPERATION, section=self._section, direction="forward", comparison=shown)

    def _changed(self, first: Mapping[str, np.ndarray], overrides: Mapping[str, np.ndarray]) -> list[Comparison]:
        answer = self._answer({**self._given, **overrides})
        compared = [identical(name, answer[name], first[name], USED) for name in self._taps if name in first]
        return [one for one in compared if not one.passed]

    def _operations(self) -> Iterator[_Found]:
        """Each tap, and each gradient, from the reference's taps and cotangents alone."""
        given = forced(self._case, self._plan, self._section, self._given)
        for one in self._compare(given, alone=True):
            if one.passed:
                continue
            if not one.tensor.startswith("grad."):
                yield _Found(operation=one.tensor, section=self._section, direction="forward", comparison=one)
                continue
            for operation, comparison in self._backward(one, given):
                yield _Found(operation=operation, section=self._section, direction="backward", comparison=comparison)

    def _backward(self, wrong: Comparison, given: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Comparison]]:
        """The operations that send a wrong gradient to a tensor, out of all that take it."""
        of = wrong.tensor.removeprefix("grad.")
        if of.endswith((".lora_a", ".lora_b")):
            yield f"{of.rpartition('.')[0]}.{'lora_ax' if of.endswith('lora_a') else 'lora_bax'}", wrong
            return
        takers = [tap.name for tap in self._taps.values() if of in tap.inputs]
        if len(takers) == 1:
            yield takers[0], wrong
            return
        bars = {f"bar.{name}" for name in self._taps}
        for taker in takers:
            single = {name: array for name, array in given.items() if name not in bars or name == f"bar.{taker}"}
            for one in self._compare(single, only=wrong.tensor, alone=True):
                if not one.passed:
                    yield taker, one

    def _compare(self, tensors: Mapping[str, np.ndarray], only: str = "", *, alone: bool = False) -> list[Comparison]:
        """alone: every tap is overridden, so that each answered tensor is one operation's work."""
        answer = self._answer(tensors)
        share = confidence.FALSE_ALARM / len(taps.sections(self._plan.blocks))
        if alone and self._plan.dtype == perturb.STORED:
            answer = {name: answer[name] for name in answer if only in ("", name)}
            return operations(answer, operation_limits(self._case, self._section, tensors, self._ulp, share))
        exact, response = perturb.respond_section(
            self._case.plan, self._section, self._case.weight, self._case.adapter, widened(tensors),
            runs=RUNS, seed=self._case.seed, ulp=self._ulp,
        )  # fmt: skip
        per_row = share / sum(response.rows[name].size for name in answer)
        comparisons = []
        for name in answer:
            if only and name != only:
                continue
            # in float64 the reference errs as much as the stack
            sides = 2 if self._plan.dtype == "float64" else 1
            of_rows = np.atleast_1d(response.rows[name])
            limit = perturb.row_limits(of_rows, dtype=self._plan.dtype, runs=RUNS, false_alarm=per_row, sides=sides)
            observed, wanted = (array.reshape(1, 1) if array.ndim == 0 else array for array in (answer[name], exact[name]))
            comparisons.append(rows(name, observed, wanted, limit, "the reference's own inputs (docs/theory.md)"))
        return comparisons

    def _answer(self, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """In the order of computation."""
        answer = self._process.request("block", {"graph": self._process.graph, "section": self._section}, tensors).tensors
        batch, tokens = self._case.batch.ids.shape
        expected = graph.expected_block_answer(self._plan, self._section, tensors, batch, tokens)
        require_answer(self._process.name, expected, answer)
        return {name: answer[name] for name in expected}


def _grouped(stack: str, found: Sequence[_Found]) -> list[Fault]:
    """One fault an operation, with all the sections and directions in which it is wrong."""
    by_operation: dict[str, list[_Found]] = {}
    for one in found:
        by_operation.setdefault(one.operation, []).append(one)
    made = []
    for operation, group in by_operation.items():
        directions: set[Direction] = {one.direction for one in group}
        shown = next((one for one in group if one.direction == "forward"), group[0]).comparison
        assert shown.where is not None
        assert shown.got is not None
        assert shown.wanted is not None
        made.append(
            Fault(
                stack=stack, operation=operation, direction="both" if len(directions) == 2 else directions.pop(),
                sections=tuple(dict.fromkeys(one.section for one in group)), tensor=shown.tensor, where=shown.where,
                got=shown.got, wanted=shown.wanted, observed=shown.observed, bound=shown.bound, relative=shown.relative or 0.0,
            )
        )  # fmt: skip
    return made
