"""What a check is: drawn inputs, what to ask the stacks, and how to judge the answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, TypeVar

import numpy as np
from hypothesis.strategies import SearchStrategy

from contract.worker.answers import Answer, check_answer
from contract.worker.capabilities import Capabilities, Elementary
from contract.worker.files import FileReference
from contract.worker.process import Pending, StackProcess
from parity.checks import packed
from parity.checks.packed import Packed
from parity.find.fault import Fault
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
    real:    the file and tensor that the weight is, for a real checkpoint's weight; of a whole one, its embedding
    """

    name: str
    inputs: Mapping[str, Arrays]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    real: FileReference | None = None
    _made: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Without the tensors, which would fill screens."""
        return f"Case({self.name!r})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """As hypothesis shows it, with a failure."""
        printer.text(repr(self))

    @property
    def nbytes(self) -> int:
        """What its inputs take."""
        return sum(array.nbytes for arrays in self.inputs.values() for array in arrays.values())

    def pack(self) -> Packed:
        """What it is made of, as it travels.

        Raises:
            CanNotTravel: nothing packs such a case.
        """
        return packed.pack(self)

    @property
    def kind(self) -> str:
        """Equal for inputs of which one that fails stands for the others."""
        return ""

    def once(self, name: str, make: Callable[[], T]) -> T:
        """What `make` gives, made on the first call: a reference serves every stack and question that needs it."""
        # two threads may ask: what judging needs is made ahead (parity/ahead.py) while requests are
        with self._made.setdefault(f"lock of {name}", threading.RLock()):
            if name not in self._made:
                self._made[name] = make()
            made: T = self._made[name]
        return made

    def forget(self) -> None:
        """Drops what `once` made: of a real model that is gigabytes, and a report keeps its cases."""
        self._made.clear()


class Awaited(Protocol):
    """One request or several on their way."""

    def result(self) -> Answer:
        """Waits for the answer; raises as Pending.result."""


class Ask(Protocol):
    """What is asked of a stack for one answer."""

    def key(self) -> tuple[object, ...]:
        """Equal where the answer is the same, so that two questions can share it."""

    def send(self, process: StackProcess) -> Awaited:
        """Sends it.

        Raises:
            HarnessError, RequestFailed: as StackProcess.submit; and what it had to wait for on the way.
        """

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds an answer's tensors against what they must be.

        Raises:
            ProtocolBroken: one is missing, extra, of the wrong shape or dtype.
        """


@dataclass(frozen=True, kw_only=True)
class Request:
    """One `compute` request (an Ask).

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

    def send(self, process: StackProcess) -> Pending:
        """Sends it, and waits for nothing."""
        return process.submit("compute", self.values(), self.sent())

    def require(self, stack: str, answered: Arrays) -> None:
        """Holds an answer against the operation's table."""
        check_answer(stack, self.op, self.attrs, self.tensors, answered)

    def key(self) -> tuple[object, ...]:
        """Equal for requests on the same arrays."""
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
class GraphNeeds:
    """What a stack must declare of whole graphs to be asked: every one of these.

    session: training sessions, of runs of these model types; dropout: in them
    score:   logits of models and adapters on disk
    requests: that it must answer beside those of every graph
    """

    model_types: tuple[str, ...]
    nf4: bool = False
    paths: tuple[str, ...] = ()
    layout_options: tuple[str, ...] = ()
    packing: bool = False
    patterns: bool = False
    proxy: bool = False
    session: bool = False
    dropout: bool = False
    score: bool = False
    requests: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How one question is asked in one dtype.

    statistical: how many of the comparisons of one example spend false-alarm probability
    graph:       what a stack must declare beside operations
    stacks:      the only stacks that it is asked of, where stacks differ in what there is to ask; None: any
    unasked:     why it is asked of none of them, if so
    witness:     witnesses are asked too; of a comparison of two, one is a witness
    ahead:       (case, what the stacks declare) -> what of judging needs no answer is done, while the stacks compute theirs
    """

    question: Question
    dtype: str
    requests: Callable[[Case], tuple[Ask, ...]]
    judge: Judge
    statistical: int = 0
    graph: GraphNeeds | None = None
    stacks: tuple[str, ...] | None = None
    unasked: str = ""
    witness: bool = False
    ahead: Callable[[Case, Sequence[Elementary]], None] | None = None


Tell = Callable[[str], None]
"""Called with what is done now."""

Locate = Callable[[Case, Plan, StackProcess, Sequence[Elementary], Tell], Sequence[Fault]]
"""(failing case, its plan, one stack that was asked, what it declares, progress) -> that stack's own faults."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the table.

    plans:           the questions that are asked
    not_applicable:  the others, each with its reason
    operations:      what a stack must declare to be asked
    cases:           strategy of drawn inputs; None where all are fixed
    cost:            how many examples of a cheap check one example stands for: but for the longest profile, a run draws so many fewer
    least, most:     no run draws fewer, or more
    fixed_cases:     inputs that every run must cover: real weights, dense grids
    fixed_count:     how many those are
    few:             how many of them, the first, the shortest profile asks; None: all
    nightly:         the longest profile alone asks it
    whole:           every profile asks all of its fixed cases
    zoom:            the part of a case around a failing component, where the operation allows one to be taken
    locate:          finds the operations at fault in a failing case; it then is not shrunk
    bound, theory, breaks: for a person, where they are others than its kind's (parity/checks/kinds.py)
    """

    id: str
    tier: str
    title: str
    operations: tuple[str, ...]
    plans: tuple[Plan, ...]
    not_applicable: Mapping[Question, str]
    cases: SearchStrategy[Case] | None
    cost: int = 1
    least: int = 1
    most: int | None = None
    fixed_cases: Callable[[], Iterator[Case]] | None = None
    fixed_count: int = 0
    few: int | None = None
    whole: bool = False
    nightly: bool = False
    zoom: Callable[[Case, tuple[int, ...]], Case] | None = None
    locate: Locate | None = None
    bound: str = ""
    theory: str = ""
    breaks: str = ""

    def __post_init__(self) -> None:
        asked = {plan.question for plan in self.plans}
        assert asked.isdisjoint(self.not_applicable), f"{self.id}: asked and not applicable"
        assert asked | set(self.not_applicable) == set(Question), f"{self.id}: a question is neither asked nor explained"

    @property
    def model_types(self) -> frozenset[str]:
        """The architectures of its graphs; of a primitive, none."""
        return frozenset(name for plan in self.plans if plan.graph is not None for name in plan.graph.model_types)
