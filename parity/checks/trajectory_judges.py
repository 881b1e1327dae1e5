"""Verdicts on optimiser steps: exactly what no stack computes, within the response to rounding errors what each does (docs/theory.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from contract.model.layout import Layout
from contract.training.stepwise import PARTS
from contract.worker.capabilities import Elementary
from parity.checks import graph_judges
from parity.checks.check import Answered, Arrays, Case
from parity.checks.policy_case import golden
from parity.checks.trajectory_case import INITIAL, RUNS, StepCase
from parity.judge import perturb, verdict
from parity.judge.verdict import Comparison
from parity.reference.running_error import REFERENCE
from parity.reference.trajectory import LOSS

EXACTLY = "what the contract gives"
"""Why a ledger must be the same number: no stack computes it."""

_AFTER_THE_GRAPH = ("sqrt", "reciprocal")
"""Functions that clipping and AdamW take."""


def worst_ulp(layout: Layout, declared: Sequence[Elementary]) -> float:
    """The worst error that is declared of a function that a step takes, in ulp.

    Raises:
        ValueError: one is not declared.
    """
    of_step = [one.ulp for one in (*declared, *REFERENCE.declared) if one.function in _AFTER_THE_GRAPH]
    return max(graph_judges.worst_ulp(layout, declared), *of_step)


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
    comparisons = [ledger(name, observed[name], wanted[name]) for name in case.ledger()]
    comparisons += [same(f"{INITIAL}{part}", observed, wanted, f"{INITIAL}{part}.") for part in PARTS if case.initial()]
    comparisons += [ledger(name, observed[name], wanted[name]) for name in (f"{INITIAL}updates",) if case.initial()]
    if not case.step.batches:
        return [*comparisons, *_stays(case, observed)]
    comparisons += _what_decays(case, observed)
    rows = case.response(worst_ulp(case.run.layout, declared)).rows
    return comparisons + within(rows, observed, wanted, dtype=case.dtype, sides=sides, false_alarm=false_alarm)


def within(
    rows: Arrays, observed: Arrays, wanted: Arrays, *, dtype: str, sides: int, false_alarm: float, of: str = "Trajectories"
) -> list[Comparison]:
    """One comparison for each kind of tensor, over all layers, by a response to perturbation."""
    rows = {name: np.atleast_1d(found) for name, found in rows.items()}
    per_row = false_alarm / sum(found.size for found in rows.values())
    source = f"{RUNS} perturbed runs of the float64 reference, false alarm {per_row:.1e} a row (docs/theory.md, {of})"
    comparisons = []
    for (kind, _), names in _kinds(rows, observed).items():
        found = np.stack([rows[name] for name in names])
        limits = perturb.row_limits(found, dtype=dtype, runs=RUNS, false_alarm=per_row, sides=sides)
        comparisons.append(graph_judges.over_layers(kind, names, observed, wanted, limits, source))
    return comparisons


def ledger(name: str, observed: np.ndarray, wanted: np.ndarray, source: str = EXACTLY) -> Comparison:
    """Bit for bit; a list that is shorter goes on with what the other does not hold there. Of an empty one its length is compared."""
    if max(observed.size, wanted.size) == 0:
        first, second = np.zeros(1, observed.dtype), np.zeros(1, wanted.dtype)
    else:
        first, second = observed.reshape(-1), wanted.reshape(-1)
        if first.size != second.size:
            first, second = np.append(first, ~second[first.size :]), np.append(second, ~first[second.size :])
    return verdict.identical(name, first, second, source)


def same(name: str, observed: Arrays, wanted: Arrays, start: str, source: str = EXACTLY) -> Comparison:
    """The tensors whose names begin so, as one, bit for bit."""
    names = [name for name in wanted if name.startswith(start)]
    first, second = (np.concatenate([one[name].reshape(-1) for name in names]) for one in (observed, wanted))
    return verdict.identical(name, first, second, source)


def _stays(case: StepCase, observed: Arrays) -> list[Comparison]:
    """Of a step without a token to learn: no loss, no gradient, and the state as it was."""
    before = {f"{part}.{name}": matrix for part in PARTS for name, matrix in getattr(case.before, part).items()}
    said = {"loss is NaN": np.isnan(observed[LOSS]), "grad_norm is 0": observed["grad_norm"] == 0}
    told = [ledger(name, np.array(it, np.int64), np.array(1, np.int64)) for name, it in said.items()]
    return told + [same(f"{part} (stays)", observed, before, f"{part}.") for part in PARTS]


def _what_decays(case: StepCase, observed: Arrays) -> list[Comparison]:
    """Which matrices decay, of those whose gradient is exactly zero: as in transformers' Trainer, where neither rate nor decay is zero."""
    names = case.without_gradient()
    if not names:
        return []
    moved = np.array([np.any(observed[f"adapter.{name}"] != case.before.adapter[name]) for name in names], np.int64)
    made, at_all = golden("decay"), case.rate * case.run.contract.exec.weight_decay != 0
    wanted = np.array([at_all and made["decays"][".".join(name.split(".")[-2:])] for name in names], np.int64)
    source = f"the groups of transformers {made['made_with']['transformers']}'s Trainer"
    comparison = verdict.identical("what decays", moved, wanted, source)
    where = comparison.where
    return [comparison if where is None else dataclasses.replace(comparison, place=f"what decays: {names[where[0]]}")]


def _kinds(names: Iterable[str], tensors: Arrays) -> dict[tuple[str, tuple[int, ...]], list[str]]:
    """Kind and shape -> names of that kind and shape, layer by layer: losses and norms, then m, v and adapter.

    `m.layers.3.q_proj.lora_a` is of the kind `m.q_proj.lora_a`.
    """
    order = {"m": 1, "v": 2, "adapter": 3}
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in sorted(names, key=lambda name: order.get(name.partition(".")[0], 0)):
        before, marker, after = name.partition("layers.")
        kind = before + after.partition(".")[2] if marker else name
        found.setdefault((kind, tensors[name].shape), []).append(name)
    return found
