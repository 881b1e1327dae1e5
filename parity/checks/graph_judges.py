"""Verdicts on whole graphs: every tap and gradient, row by row, against the response to perturbation (docs/theory.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from contract.model.layout import GPT2Layout, Layout
from contract.worker import graph, taps
from contract.worker.capabilities import Elementary
from contract.worker.plan import GraphPlan, Path
from parity.checks import graph_zeros
from parity.checks.check import Answered, Arrays, Case, Judge
from parity.checks.graph_case import GraphCase
from parity.checks.graph_sections import RUNS, SectionAsk, asked, operation_limits, operations
from parity.judge import perturb
from parity.judge.perturb import Response
from parity.judge.verdict import Comparison, identical, rows
from parity.reference.graph import Trace
from parity.reference.running_error import REFERENCE

FORWARD = "forward."
"""Before a tap's name: as the request `forward` shows it, where `gradients` shows it too."""

USED = "the operation that follows takes the value that is shown"
"""Why a section on what the whole graph showed must give the same numbers."""


def worst_ulp(layout: Layout, declared: Sequence[Elementary]) -> float:
    """The worst error that is declared of an elementary function that the layout's graph takes, in ulp; the reference's own among them.

    Raises:
        ValueError: one is not declared.
    """
    functions = _functions(layout)
    found = {one.function for one in declared}
    if missing := [name for name in functions if name not in found]:
        raise ValueError(
            f"the stack declares no error of {' and '.join(missing)}, which a graph's limits rest on; add them to its capabilities.json"
        )
    return max(one.ulp for one in (*declared, *REFERENCE.declared) if one.function in functions)


def _functions(layout: Layout) -> tuple[str, ...]:
    """exp and log in softmax and loss; exp in SiLU, tanh or erf, and its slope's exp, in GELU."""
    if not isinstance(layout, GPT2Layout):
        return "exp", "log"
    return "exp", "log", {"gelu": "erf", "gelu_new": "tanh"}[layout.activation_function]


def reference(case: GraphCase, declared: Sequence[Elementary]) -> tuple[Trace, Response]:
    """The reference's run of a case, and its response to perturbation; one for larger declared errors serves smaller ones."""
    worst = worst_ulp(case.plan.layout, declared)
    made: dict[float, tuple[Trace, Response]] = case.once("reference", dict)
    for ulp, found in made.items():
        if ulp >= worst:
            return found
    made[worst] = perturb.respond(case.plan, case.weight, case.adapter, case.batch, runs=RUNS, seed=case.seed, ulp=worst)
    return made[worst]


def ahead(case: Case, declared: Sequence[Elementary]) -> None:
    """Makes what judging needs beside the answers (Plan.ahead)."""
    assert isinstance(case, GraphCase)
    reference(case, declared)


def ahead_bfloat16(case: Case, declared: Sequence[Elementary]) -> None:
    """The same of a graph in bfloat16."""
    assert isinstance(case, GraphCase)
    reference(case.in_dtype("bfloat16"), declared)


def same_function(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    assert isinstance(case, GraphCase)
    _, response = reference(case, [one for stack in answered for one in stack.elementary])
    first, second = (_together(*stack.answers) for stack in answered)
    return by_kind(case.plan, first, second, response, "float64", 2, false_alarm)


def precision(dtype: str) -> Judge:
    """Against the reference, which in float64 errs as much as what it judges."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        assert isinstance(case, GraphCase)
        trace, response = reference(case, answered[0].elementary)
        observed = _together(*answered[0].answers)
        sides = 2 if dtype == "float64" else 1
        comparisons = by_kind(case.plan, observed, exact(trace, observed), response, dtype, sides, false_alarm)
        return [*comparisons, *graph_zeros.comparisons(case, observed)]

    return judge


def precision_bfloat16(*paths: Path) -> Judge:
    """The whole graph against the reference on weights rounded to bfloat16; and each operation, on the reference's own values.

    The answers are those to GraphAsk and ForwardAsk, to a SectionAsk for each of `asked`, and to a ShownAsk for each, of a plan with these
    paths.
    """

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        assert isinstance(case, GraphCase)
        right, declared, answers = case.in_dtype("bfloat16"), answered[0].elementary, answered[0].answers
        trace, response = reference(right, declared)
        observed = _together(*answers[:2])
        comparisons = by_kind(right.plan, observed, exact(trace, observed), response, "bfloat16", 1, false_alarm / 2)
        comparisons += graph_zeros.comparisons(case, observed)
        plan = right.plan.model_copy(update={"paths": paths})
        sections, ulp = asked(plan), worst_ulp(plan.layout, declared)
        for section, answer, shown in zip(sections, answers[2 : 2 + len(sections)], answers[2 + len(sections) :], strict=True):
            given = SectionAsk(case=case, plan=plan, section=section).given()
            share = false_alarm / 2 / len(sections)
            limits = right.once(f"limits {section} {ulp} {share}", partial(operation_limits, right, section, given, ulp, share))
            comparisons += [_alone(section, comparison) for comparison in operations(answer, limits)]
            comparisons += used(section, shown, answers[0])
        return comparisons

    return judge


def _alone(section: str, comparison: Comparison) -> Comparison:
    """Named as no comparison of the whole graph is."""
    before, marker, name = comparison.tensor.rpartition("grad.")
    place = f"{before}{marker}{taps.prefix(section)}{name}"
    return dataclasses.replace(comparison, tensor=f"alone.{comparison.tensor}", place=f"alone.{place}")


def used(section: str, answer: Arrays, whole: Arrays) -> list[Comparison]:
    """What each operation gives of the values that the whole graph showed, and what the whole graph showed of it."""
    full = {name: taps.prefix(section) + name for name in answer if not name.startswith("grad.")}
    return [
        dataclasses.replace(identical(f"used.{name}", answer[name], whole[place], USED), place=f"used.{place}")
        for name, place in full.items()
    ]


def fast_path(dtype: str) -> Judge:
    """Two answers of one stack to the same graph in a dtype, on production paths and on the plain one: both err by its roundings."""

    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        assert isinstance(case, GraphCase)
        right = case.in_dtype(dtype)
        _, response = reference(right, answered[0].elementary)
        fast, plain = _together(*answered[0].answers[:2]), _together(*answered[0].answers[2:])
        return [*by_kind(right.plan, fast, plain, response, dtype, 2, false_alarm), *graph_zeros.comparisons(right, fast)]

    return judge


def exact(trace: Trace, observed: Arrays) -> dict[str, np.ndarray]:
    """What the observed tensors must be."""
    known = {**trace.taps, **{f"grad.{name}": gradient for name, gradient in trace.grads.items()}}
    return {name: known[name.removeprefix(FORWARD)] for name in observed}


def _together(gradients: Arrays, forward: Arrays) -> dict[str, np.ndarray]:
    return {**gradients, **{f"{FORWARD}{name}": tap for name, tap in forward.items()}}


def by_kind(
    plan: GraphPlan, observed: Arrays, expected: Arrays, response: Response, dtype: str, sides: int, false_alarm: float
) -> list[Comparison]:
    """One comparison for each kind of tap and gradient, over all layers; its `place` is the tensor of the layer with least head-room.

    Where ranks differ by layer, one for each shape.
    """
    response_of = {name: np.atleast_1d(response.rows[name.removeprefix(FORWARD)]) for name in observed}
    per_row = false_alarm / sum(found.size for found in response_of.values())
    source = f"{response.runs} perturbed runs of the float64 reference, false alarm {false_alarm:.1e} (docs/theory.md)"
    comparisons = []
    for kind, names in _alike(plan, observed):
        found = np.stack([response_of[name] for name in names])
        limits = perturb.row_limits(found, dtype=dtype, runs=response.runs, false_alarm=per_row, sides=sides)
        comparisons.append(over_layers(kind, names, observed, expected, limits, source))
    return comparisons


def exactly(plan: GraphPlan, observed: Arrays, expected: Arrays, source: str) -> list[Comparison]:
    """As by_kind, of what must be the same numbers."""
    return [
        over_layers(kind, names, observed, expected, np.zeros((len(names), *_at_least_a_row(observed[names[0]]).shape[:-1])), source)
        for kind, names in _alike(plan, observed)
    ]


def over_layers(kind: str, names: Sequence[str], observed: Arrays, expected: Arrays, limits: np.ndarray, source: str) -> Comparison:
    """One comparison of tensors of one shape; limits [tensors, rows]."""
    first, second = (np.stack([_at_least_a_row(one[name]) for name in names]) for one in (observed, expected))
    comparison = rows(kind, first, second, limits, source)
    assert comparison.where is not None
    layer, *where = comparison.where
    return dataclasses.replace(comparison, where=tuple(where), place=names[layer])


def _alike(plan: GraphPlan, observed: Arrays) -> Iterator[tuple[str, list[str]]]:
    """Names of one kind and one shape."""
    for kind, names in kinds(plan, observed).items():
        for shape in dict.fromkeys(observed[name].shape for name in names):
            yield kind, [name for name in names if observed[name].shape == shape]


def _at_least_a_row(array: np.ndarray) -> np.ndarray:
    """A scalar is one row of one element."""
    return array.reshape(1, 1) if array.ndim == 0 else array


def kinds(plan: GraphPlan, names: Arrays) -> dict[str, list[str]]:
    """Kind -> the names of that kind, layer by layer, in the order of computation: taps, then gradients."""
    found: dict[str, list[str]] = {}
    of_taps = taps.full_names(plan)
    for name in (*of_taps, *(f"grad.{name}" for name in graph.adapter(plan)), *(f"{FORWARD}{name}" for name in of_taps)):
        if name in names:
            found.setdefault(_kind(name), []).append(name)
    return found


def _kind(name: str) -> str:
    """`layers.3.q_rope` is of the kind `q_rope`, `grad.layers.3.q_proj.lora_a` of `grad.q_proj.lora_a`."""
    before, marker, after = name.partition("layers.")
    return before + after.partition(".")[2] if marker else name
