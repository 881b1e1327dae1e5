"""Verdicts on whole graphs: every tap and gradient, row by row, against the response to perturbation (docs/theory.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from contract.worker import graph, taps
from contract.worker.capabilities import Elementary
from contract.worker.plan import GraphPlan
from parity.checks.check import Answered, Arrays, Case, Judge
from parity.checks.graph_case import GraphCase
from parity.judge import perturb
from parity.judge.perturb import Response
from parity.judge.verdict import Comparison, rows
from parity.reference.llama import Trace

RUNS = 30
"""Perturbed runs behind a threshold."""

FORWARD = "forward."
"""Before a tap's name: as the request `forward` shows it, where `gradients` shows it too."""


def worst_exp_ulp(declared: Sequence[Elementary]) -> float:
    """The worst error of exp and log that is declared, in ulp.

    Raises:
        ValueError: none is.
    """
    found = [one.ulp for one in declared if one.function in ("exp", "log")]
    if not found:
        raise ValueError("the stack declares no error of exp and log, which a graph's limits rest on; add them to its capabilities.json")
    return max(found)


def reference(case: GraphCase, declared: Sequence[Elementary]) -> tuple[Trace, Response]:
    """The reference's run of a case, and its response to perturbation; one for a larger declared error of exp serves a smaller one."""
    exp_ulp = worst_exp_ulp(declared)
    made: dict[float, tuple[Trace, Response]] = case.once("reference", dict)
    for ulp, found in made.items():
        if ulp >= exp_ulp:
            return found
    made[exp_ulp] = perturb.respond(
        case.plan, case.weight, case.adapter, case.ids, case.labels, runs=RUNS, seed=case.seed, exp_ulp=exp_ulp
    )  # fmt: skip
    return made[exp_ulp]


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
        return by_kind(case.plan, observed, exact(trace, observed), response, dtype, 2 if dtype == "float64" else 1, false_alarm)

    return judge


def fast_path(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
    assert isinstance(case, GraphCase)
    _, response = reference(case, answered[0].elementary)
    fast, plain = _together(*answered[0].answers[:2]), _together(*answered[0].answers[2:])
    return by_kind(case.plan, fast, plain, response, "float32", 2, false_alarm)


def exact(trace: Trace, observed: Arrays) -> dict[str, np.ndarray]:
    """What the observed tensors must be."""
    known = {**trace.taps, **{f"grad.{name}": gradient for name, gradient in trace.grads.items()}}
    return {name: known[name.removeprefix(FORWARD)] for name in observed}


def _together(gradients: Arrays, forward: Arrays) -> dict[str, np.ndarray]:
    return {**gradients, **{f"{FORWARD}{name}": tap for name, tap in forward.items()}}


def by_kind(
    plan: GraphPlan, observed: Arrays, expected: Arrays, response: Response, dtype: str, sides: int, false_alarm: float
) -> list[Comparison]:
    """One comparison for each kind of tap and gradient, over all layers; its `place` is the tensor of the layer with least head-room."""
    response_of = {name: np.atleast_1d(response.rows[name.removeprefix(FORWARD)]) for name in observed}
    per_row = false_alarm / sum(found.size for found in response_of.values())
    source = f"{response.runs} perturbed runs of the float64 reference, false alarm {false_alarm:.1e} (docs/theory.md)"
    comparisons = []
    for kind, names in kinds(plan, observed).items():
        found = np.stack([response_of[name] for name in names])
        limits = perturb.row_limits(found, dtype=dtype, runs=response.runs, false_alarm=per_row, sides=sides)
        first, second = (np.stack([_at_least_a_row(one[name]) for name in names]) for one in (observed, expected))
        comparison = rows(kind, first, second, limits, source)
        assert comparison.where is not None
        layer, *where = comparison.where
        comparisons.append(dataclasses.replace(comparison, where=tuple(where), place=names[layer]))
    return comparisons


def _at_least_a_row(array: np.ndarray) -> np.ndarray:
    """A scalar is one row of one element."""
    return array.reshape(1, 1) if array.ndim == 0 else array


def kinds(plan: GraphPlan, names: Arrays) -> dict[str, list[str]]:
    """Kind -> the names of that kind, layer by layer, in the order of computation: taps, then gradients."""
    found: dict[str, list[str]] = {}
    of_taps = taps.full_names(plan.layout.num_hidden_layers, plan.targets)
    for name in (*of_taps, *(f"grad.{name}" for name in graph.adapter(plan)), *(f"{FORWARD}{name}" for name in of_taps)):
        if name in names:
            found.setdefault(_kind(name), []).append(name)
    return found


def _kind(name: str) -> str:
    """`layers.3.q_rope` is of the kind `q_rope`, `grad.layers.3.q_proj.lora_a` of `grad.q_proj.lora_a`."""
    before, marker, after = name.partition("layers.")
    return before + after.partition(".")[2] if marker else name
