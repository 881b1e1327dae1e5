"""One input of one cell, asked of stacks and judged again: alone, without drawing and without shrinking."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contract.worker.capabilities import Capabilities
from contract.worker.process import StackProcess
from parity.checks.check import Answered, Arrays, Ask, Case, Plan, Request
from parity.judge.verdict import Comparison

NOT_A_CASE = (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What judging raises on a case, or on answers, that are not what the check is made for: these come from a file, or were narrowed."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Whom a cell asks, and what each declares."""

    stack: str
    device: str
    capabilities: Capabilities


def answers_of(plan: Plan, case: Case, process: StackProcess) -> list[Arrays]:
    """What a stack answers now to every request of a plan.

    Raises:
        HarnessError, RequestFailed: as Ask.send and Ask.require.
    """
    requests = plan.requests(case)
    sent = [(request, request.send(process)) for request in requests]
    answers: list[Arrays] = []
    for request, pending in sent:
        answer = pending.result().tensors
        request.require(process.name, answer)
        answers.append(answer)
    return answers


def judge(plan: Plan, case: Case, asked: Sequence[Asked], answers: Mapping[str, Sequence[Arrays]], false_alarm: float) -> list[Comparison]:
    """The check's verdict on answers, wherever they come from.

    Raises:
        ValueError: the check reaches none.
    """
    answered = [Answered(stack=one.stack, device=one.device, capabilities=one.capabilities, answers=answers[one.stack]) for one in asked]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return plan.judge(case, answered, false_alarm)


def failed(comparisons: Sequence[Comparison], tensor: str, unit: str) -> Comparison | None:
    """The comparison of that kind, where it failed."""
    return next((one for one in comparisons if (one.tensor, one.unit) == (tensor, unit) and not one.passed), None)


def narrowed(answers: Sequence[Arrays], kept: Sequence[str] | None) -> list[Arrays]:
    """Answers with only the tensors that are kept; None: all."""
    return [answer if kept is None else {name: array for name, array in answer.items() if name in kept} for answer in answers]


def names_of(comparison: Comparison, answers: Sequence[Arrays]) -> tuple[str, ...]:
    """The tensors of answers that a comparison is about: its place, of which an answer may name the end alone."""
    place = (comparison.place or comparison.tensor).rpartition(": ")[2].partition(" of ")[0]
    for before in ("forward.", "alone."):
        place = place.removeprefix(before)
    found = {name for answer in answers for name in answer if place == name or place.endswith(f".{name}")}
    return tuple(sorted(found))


def digest(requests: Sequence[Ask]) -> str:
    """Of what is asked: another one where a version asks otherwise on the same input."""
    return hashlib.sha256(json.dumps([_described(one) for one in requests], sort_keys=True, default=str).encode()).hexdigest()


def _described(ask: Ask) -> list[object]:
    """An ask's kind, and what of it is no array: operation and attributes, plan, taps, section."""
    if isinstance(ask, Request):
        return [ask.op, dict(ask.attrs), {name: [list(array.shape), array.dtype.name] for name, array in ask.tensors.items()}]
    told: Callable[[str], object] = lambda name: getattr(ask, name, None)  # noqa: E731
    plan = told("plan")
    return [type(ask).__name__, plan.model_dump(mode="json") if hasattr(plan, "model_dump") else None, told("wanted"), told("section")]
