"""Laws of primitives: equations between a stack's own answers, so that they see what both stacks have wrong alike.

A law is data: what is asked, and which sides must be equal. Two answers that are each right within the running errors of the reference
lie within the sum of both of each other; where legal arithmetic gives the same numbers on either side, they must be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis.strategies import SearchStrategy

from contract.worker.operations import OPERATIONS
from parity.checks.check import Answered, Arrays, Case, Check, Judge, Plan, Question, Request
from parity.checks.primitive import SOURCE, errors
from parity.judge.bounds import Bound
from parity.judge.verdict import Comparison, within
from parity.reference.primitive import Attributes, Reference, Tensors
from parity.reference.running_error import REFERENCE, Computed

Asked = tuple[Tensors, Attributes]
"""One request: its tensors, and its attributes less dtype."""

Answer = Mapping[str, Computed]
"""A stack's answer, each tensor with what it may err by; with no error in an exact law."""

Change = Callable[[Tensors, Attributes], Asked]

Sides = dict[str, tuple[Computed, Computed]]
"""What must be equal, by name."""

ALONE = "a law is asked of each stack alone"
NEAR = f"the sum of both sides: {SOURCE}"
EXACT = "every legal arithmetic gives both sides the same numbers"


@dataclass(frozen=True, kw_only=True)
class Law:
    """One law of an operation.

    name:   in a few words
    asks:   (tensors, attributes) of a case -> the requests; one that several laws ask is sent once
    sides:  (their answers, the requests) -> what must be equal
    exact:  the same numbers; else within the running errors of both sides
    ops:    the operation of each request, where one is another than the check's; its answer comes without errors
    """

    name: str
    asks: Callable[[Tensors, Attributes], Sequence[Asked]]
    sides: Callable[[Sequence[Answer], Sequence[Asked]], Sides]
    exact: bool = False
    ops: Sequence[str] = ()

    def asked(self, op: str, case: Case, dtype: str) -> Sequence[tuple[str, Case]]:
        """Each request's operation, and its inputs as a case of their own, whose errors are worked out once."""
        cases = case.once(
            f"{self.name} {dtype}",
            lambda: [
                Case(name=self.name, inputs={dtype: tensors}, attrs=attrs)
                for tensors, attrs in self.asks(case.inputs[dtype], case.attrs)
            ],
        )  # fmt: skip
        return list(zip(self.ops or [op] * len(cases), cases, strict=True))


def check(
    op: str,
    reference: Reference,
    cases: SearchStrategy[Case],
    laws: Sequence[Law],
    *,
    title: str,
    dtypes: Sequence[str] = ("float64", "float32"),
    cost: int = 15,
) -> Check:
    """A check of several laws of one operation.

    Args:
        dtypes: float64 alone where requests have many shapes or attributes, each of which costs a compile.
    """
    plans = [
        Plan(question=Question.PRECISION, dtype=dtype, requests=_requests(op, laws, dtype), judge=_judge(op, reference, laws, dtype))
        for dtype in dtypes
    ]
    return Check(
        id=f"a.law_{op}",
        tier="A",
        title=title,
        operations=(*dict.fromkeys(other for law in laws for other in law.ops if other != op), op),
        cases=cases,
        plans=tuple(plans),
        not_applicable=dict.fromkeys((Question.SAME_FUNCTION, Question.FAST_PATH), ALONE),
        cost=cost,
    )


def _requests(op: str, laws: Sequence[Law], dtype: str) -> Callable[[Case], tuple[Request, ...]]:
    def requests(case: Case) -> tuple[Request, ...]:
        return tuple(
            Request(op=other, attrs={**one.attrs, "dtype": dtype}, tensors=one.inputs[dtype])
            for law in laws
            for other, one in law.asked(op, case, dtype)
        )

    return requests


def _judge(op: str, reference: Reference, laws: Sequence[Law], dtype: str) -> Judge:
    def judge(case: Case, answered: Sequence[Answered], false_alarm: float) -> list[Comparison]:
        (one,) = answered
        comparisons, answers = [], iter(one.answers)
        for law in laws:
            asked = law.asked(op, case, dtype)
            known = [
                _known(next(answers), {} if law.exact or other != op else errors(reference, made, dtype, one.elementary))
                for other, made in asked
            ]
            for name, (left, right) in law.sides(known, [(made.inputs[dtype], made.attrs) for _, made in asked]).items():
                bound = Bound(np.zeros(left.shape), EXACT) if law.exact else _near(left, right)
                comparisons.append(within(f"{law.name}: {name}", left.value, right.value, bound))
        return comparisons

    return judge


def _near(left: Computed, right: Computed) -> Bound:
    """No limit excuses an infinity or NaN in an answer: laws are asked where no right stack has any."""
    return Bound(np.where(np.isfinite(left.value) & np.isfinite(right.value), left.error + right.error, 0.0), NEAR)


def _known(answer: Arrays, error: Arrays) -> Answer:
    return {
        name: Computed(tensor.astype(np.float64), error.get(name, np.zeros(tensor.shape)), REFERENCE) for name, tensor in answer.items()
    }


GRID, SHIFT = 2.0**-16, 64.0
"""Values on the grid: x + SHIFT is no rounding in either dtype."""


def on_grid(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Values in [-8, 8)."""
    return rng.integers(-(2**19), 2**19, shape) * GRID


def shifted(name: str) -> Change:
    """SHIFT added to a tensor whose values are on the grid."""
    return lambda tensors, attrs: ({**tensors, name: tensors[name] + tensors[name].dtype.type(SHIFT)}, attrs)


def as_it_is(tensors: Tensors, attrs: Attributes) -> tuple[Asked]:
    """Asks the case alone, for a law within one answer."""
    return ((tensors, attrs),)


def exact(array: np.ndarray) -> Computed:
    """An input, as a side of a law."""
    return REFERENCE.exact(array)


def once(change: Change) -> Callable[[Tensors, Attributes], tuple[Asked, Asked]]:
    """Asks the case as it is, and changed."""
    return lambda tensors, attrs: ((tensors, attrs), change(tensors, attrs))


def alike(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
    """Every tensor of two answers."""
    first, second = answers
    return {name: (first[name], second[name]) for name in first}


def permuted(op: str, letters: str) -> Law:
    """The dimensions of those letters rolled, in whatever has them."""
    operation = OPERATIONS[op]
    specs = {**operation.inputs, **operation.cotangents(), **operation.outputs}
    dims = {name: spec.dims for name, spec in specs.items()} | {f"{name}_grad": specs[name].dims for name in operation.gradients}

    def changed(tensors: Tensors, attrs: Attributes) -> Asked:
        return {name: np.array(array[_rolled(array.shape, dims[name], letters)], order="C") for name, array in tensors.items()}, attrs

    def sides(answers: Sequence[Answer], asked: Sequence[Asked]) -> Sides:
        first, second = answers
        return {name: (one[_rolled(one.shape, dims[name], letters)], second[name]) for name, one in first.items()}

    return Law(name=f"{', '.join(letters)} permuted", asks=once(changed), sides=sides)


def _rolled(shape: tuple[int, ...], dims: str, letters: str) -> tuple[np.ndarray, ...]:
    index = [np.roll(np.arange(size), 1) if letter in letters else np.arange(size) for size, letter in zip(shape, dims, strict=True)]
    return np.ix_(*index) if index else ()
