"""What each rule sees of a unit: the tensors on which it fails, and whether it fails on these inputs without the bug too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np

from contract.worker.answers import Answer
from parity.mutants.baselines import curves, rules
from parity.mutants.baselines.taking import Asked
from parity.mutants.baselines.units import Unit

Key = tuple[int, int, str]
"""Example, request, tensor."""

RAISED = "raised an error"
"""In a tensor's place, where one of two stacks gives an error for an answer: any test would stop there."""

_OUTPUTS = ("logits", "loss", "lm_head")
"""What a team's own test compares of a graph, beside the adapter's gradients; the gate sees every tap."""


class Sight(StrEnum):
    """What a rule made of a bug.

    RED_ANYWAY: it fails, and on the same inputs it fails without the bug too.
    """

    SEEN = "seen"
    RED_ANYWAY = "red anyway"
    MISSED = "missed"
    NOT_APPLICABLE = "n/a"


@dataclass
class Found:
    """What a rule was asked of, and where it failed."""

    compared: set[Key] = field(default_factory=set)
    failed: set[Key] = field(default_factory=set)


def found(unit: Unit, asked: Iterable[Asked]) -> dict[str, Found]:
    """Rule -> what it was asked of, and where it failed."""
    every = {rule.name: Found() for rule in rules.EVERY}
    for one in asked:
        answers = one.answers
        if answers is None:
            _raised(unit, one, every)
            continue
        if "tensors" in unit.what:
            _tensors(unit, one, answers, every)
        if "losses" in unit.what:
            _losses(one, answers, every[rules.CURVES.name])
    return every


def _raised(unit: Unit, one: Asked, every: Mapping[str, Found]) -> None:
    """One side's error is a difference to every rule that is asked; where both give one, there is nothing to compare."""
    if isinstance(one.first, Answer) == isinstance(one.second, Answer):
        return
    of = {"tensors": [rule.name for rule in rules.RULES], "losses": [rules.CURVES.name]}
    for rule in (rule for what in unit.what for rule in of[what]):
        every[rule].compared.add((one.example, one.request, RAISED))
        every[rule].failed.add((one.example, one.request, RAISED))


def _tensors(unit: Unit, one: Asked, answers: tuple[Mapping[str, np.ndarray], ...], every: Mapping[str, Found]) -> None:
    first, second = answers
    for name in sorted(first.keys() & second.keys()):
        if first[name].dtype not in rules.COMPARED or not _is_output(unit, name):
            continue
        for rule in rules.RULES:
            every[rule.name].compared.add((one.example, one.request, name))
            if rule.sees(first[name], second[name]):
                every[rule.name].failed.add((one.example, one.request, name))


def _is_output(unit: Unit, name: str) -> bool:
    return unit.inputs == "hard" or unit.check.tier != "C" or name in _OUTPUTS or name.startswith("grad.")


def _losses(one: Asked, answers: tuple[Mapping[str, np.ndarray], ...], result: Found) -> None:
    first, second = (curves.losses(answer) for answer in answers)
    if second.size:
        key = (one.example, one.request, "loss of each step")
        result.compared.add(key)
        if rules.CURVES.sees(first, second):
            result.failed.add(key)


def sight(rule: str, every: Iterable[tuple[Mapping[str, Found], Mapping[str, Found]]]) -> Sight:
    """What a rule made of a bug over some units, each with the bug and without.

    An input is a test: the bug is seen where one is red that is green without it. A test that is red anyway tells nobody.
    """
    sights = {_of_unit(planted[rule], clean[rule]) for planted, clean in every}
    return next((one for one in (Sight.SEEN, Sight.RED_ANYWAY, Sight.MISSED) if one in sights), Sight.NOT_APPLICABLE)


def _of_unit(planted: Found, clean: Found) -> Sight:
    with_it, without = ({example for example, _, _ in one.failed} for one in (planted, clean))
    if with_it - without:
        return Sight.SEEN
    if with_it:
        return Sight.RED_ANYWAY
    return Sight.MISSED if planted.compared else Sight.NOT_APPLICABLE
