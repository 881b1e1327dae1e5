"""What a check is: drawn inputs, what to ask the stacks, and how to judge the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from hypothesis.strategies import SearchStrategy

from contract.worker.files import FileReference
from contract.worker.stack import Capabilities, Elementary
from parity.judge.verdict import Comparison

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]


class Question(StrEnum):
    """The three questions, asked apart (README.md)."""

    SAME_FUNCTION = "same_function"
    PRECISION = "precision"
    FAST_PATH = "fast_path"


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """One input.

    name:    how it was made, in a few words
    inputs:  work dtype -> tensors by name; what differs by dtype is drawn for each (a float64 case has full mantissas)
    attrs:   the operation's attributes, less dtype
    real:    the file and tensor that the weight is, for a real checkpoint's weight
    """

    name: str
    inputs: Mapping[str, Arrays]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    real: FileReference | None = None
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made on the first call: a reference serves every stack and question that needs it."""
        if name not in self._made:
            self._made[name] = make()
        made: T = self._made[name]
        return made


@dataclass(frozen=True, kw_only=True)
class Request:
    """One `compute` request.

    references: tensors that are sent as a file's hash, not as bytes
    narrow:     what is sent in place of a tensor of that name, which it widens to exactly: half the bytes of a float64 weight
    """

    op: str
    attrs: Mapping[str, Any]
    tensors: Arrays
    references: Mapping[str, FileReference] = field(default_factory=dict)
    narrow: Arrays = field(default_factory=dict)

    def values(self) -> dict[str, Any]:
        """The request's header."""
        widen = {name: self.tensors[name].dtype.name for name in self.narrow}
        return {"op": self.op, "attrs": dict(self.attrs), **({"widen": widen} if widen else {})}

    def sent(self) -> dict[str, np.ndarray | FileReference]:
        """The request's tensors, as they travel."""
        return {**self.tensors, **self.narrow, **self.references}

    def key(self) -> tuple[object, ...]:
        """Equal for requests on the same arrays, so that two questions can share one answer."""
        return self.op, repr(sorted(self.attrs.items())), tuple(sorted((name, id(array)) for name, array in self.tensors.items()))


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one stack answered to a plan's requests, in their order."""

    stack: str
    capabilities: Capabilities
    answers: Sequence[Arrays]
    device: str = ""

    @property
    def elementary(self) -> tuple[Elementary, ...]:
        """The errors of elementary functions that the stack declares on its device."""
        return self.capabilities.elementary_on(self.device)


Judge = Callable[[Case, Sequence[Answered], float], list[Comparison]]
"""(case, one Answered a stack of the cell, false-alarm probability to spend) -> comparisons."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one question is asked in one dtype.

    statistical: how many of the comparisons of one example spend false-alarm probability
    """

    question: Question
    dtype: str
    requests: Callable[[Case], tuple[Request, ...]]
    judge: Judge
    statistical: int = 0


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    plans:           the questions that are asked
    not_applicable:  the others, each with its reason
    operations:      what a stack must declare to be asked
    cases:           strategy of drawn inputs
    fixed_cases:     inputs that every run must cover: real weights, dense grids
    fixed_count:     how many those are
    zoom:            the part of a case around a failing component, where the operation allows one to be taken
    """

    id: str
    tier: str
    title: str
    operations: tuple[str, ...]
    plans: tuple[Plan, ...]
    not_applicable: Mapping[Question, str]
    cases: SearchStrategy[Case]
    fixed_cases: Callable[[], Iterator[Case]] | None = None
    fixed_count: int = 0
    zoom: Callable[[Case, tuple[int, ...]], Case] | None = None

    def __post_init__(self) -> None:
        asked = {plan.question for plan in self.plans}
        assert asked.isdisjoint(self.not_applicable), f"{self.id}: asked and not applicable"
        assert asked | set(self.not_applicable) == set(Question), f"{self.id}: a question is neither asked nor explained"
