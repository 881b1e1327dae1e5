"""What is asked of the stacks for the baselines: for each mutant's check, its own inputs and one ordinary one, in a user's dtype.

A unit is a check whose plans compare nothing: its answers are kept, and rules judge them. Its plans are those of the mutant's check that
ask in float32 or bfloat16; where all ask in float64, the same requests in float32, or the float32 check of the same run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from parity.checks import registry
from parity.checks.artifact_case import MergeAsk, ScoreAsk
from parity.checks.check import Ask, Case, Check, Plan, Question, Request
from parity.checks.graph_case import ForwardAsk, GraphAsk
from parity.checks.graph_one_token import OneTokenAsk
from parity.mutants.baselines import curves, ordinary

Inputs = Literal["hard", "ordinary"]
"""The inputs that the gate draws for the check; or one as a team's own test has."""

What = Literal["tensors", "losses"]
"""What rules look at: every answer; or the losses of a run, step by step."""

TWINS = {"d.free_running": "d.trajectory_float32", "d.law_batches": "d.trajectory_packed_float32"}
"""Checks of runs in float64 -> the one in float32, where that is not named after it."""

FILES = ("e.saved", "e.checkpoint")
"""Checks of files, whose answers are bytes: no rule on numbers applies."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One thing to ask.

    check: named so that its answers have a folder of their own.
    """

    inputs: Inputs
    what: tuple[What, ...]
    check: Check


def units(check_id: str) -> Iterator[Unit]:
    """What is asked for a mutant whose check this is; nothing for one that no rule applies to."""
    known = {check.id: check for check in registry.CHECKS}
    if check_id in FILES or check_id not in known:
        return
    check = known[check_id]
    if (hard := _in_users_dtype(check, known)) is not None:
        yield Unit(inputs="hard", what=("tensors",), check=hard)
    if check.tier == "D":
        yield Unit(inputs="ordinary", what=("tensors", "losses"), check=curves.ordinary(check))
    elif hard is not None:
        yield Unit(inputs="ordinary", what=("tensors",), check=ordinary.check(hard))
    if check.tier in "ABC":
        yield Unit(inputs="ordinary", what=("losses",), check=curves.ordinary(check))
    if check.tier in "ABCD":
        yield Unit(inputs="hard", what=("losses",), check=curves.hard(check))


def _in_users_dtype(check: Check, known: dict[str, Check]) -> Check | None:
    """The check's plans in float32 or bfloat16, made where there is none; None where that can't be."""
    plans = [plan for plan in check.plans if plan.dtype != "float64"]
    if plans:
        return dataclasses.replace(check, plans=tuple(plans), nightly=False, not_applicable=_others(plans))
    if check.tier == "D":
        twin = known.get(TWINS.get(check.id, f"{check.id}_float32"))
        return None if twin is None else dataclasses.replace(twin, nightly=False)
    plans = [
        dataclasses.replace(plan, dtype="float32", requests=_narrowed(plan, number))
        for number, plan in enumerate(check.plans)
        if plan.question is check.plans[-1].question
    ]
    return dataclasses.replace(check, plans=tuple(plans), nightly=False, not_applicable=_others(plans))


def _others(plans: Sequence[Plan]) -> dict[Question, str]:
    asked = {plan.question for plan in plans}
    return {question: "not a question of the baselines" for question in Question if question not in asked}


def _narrowed(plan: Plan, number: int) -> Callable[[Case], tuple[Ask, ...]]:
    """A plan's requests, each in float32; made once a case, since requests are known by their arrays."""
    return lambda case: case.once(f"narrowed {number}", lambda: tuple(narrowed(ask) for ask in plan.requests(case)))


def narrowed(ask: Ask) -> Ask:
    """The same request in float32.

    Raises:
        TypeError: of a kind that no check asks in float64 alone.
    """
    if isinstance(ask, Request):
        tensors = {name: _narrow(array) for name, array in ask.tensors.items()}
        attrs: dict[str, Any] = {**ask.attrs, "dtype": "float32"}
        return dataclasses.replace(ask, attrs=attrs, tensors=tensors, narrow={})
    if isinstance(ask, GraphAsk | ForwardAsk | OneTokenAsk | MergeAsk):
        return dataclasses.replace(ask, plan=ask.plan.model_copy(update={"dtype": "float32"}))
    if isinstance(ask, ScoreAsk):
        return dataclasses.replace(ask, dtype="float32")
    raise TypeError(f"{type(ask).__name__} has no form in float32")


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if array.dtype == np.float64 else array
