"""Arithmetic that a stack may have: any order of sums, fused or not, any rounding within the unit roundoff, subnormal numbers or none.

A primitive is written once on `Number`s, in one arrangement of its operations; each `Rounding` is another legal way to compute it.
Only float32 is imitated, on float64 numbers: a float64 holds the sum, product, quotient and root of two float32 to far more than their
rounding, so that rounding it once more gives the float32 result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract.worker.capabilities import FUNCTIONS, Elementary

ULP = 1.0
DECLARED = tuple(
    Elementary(function=function, dtype=dtype, low=-1e9, high=1e9, ulp=ULP, absolute=0)
    for function in FUNCTIONS
    for dtype in ("float32", "float64")
)
"""What the stacks of these tests declare; the unkind ones use it up."""

U, TINY = 2.0**-24, 2.0**-126


@dataclass(frozen=True, eq=False)
class Rounding:
    """How one device rounds.

    side:    None: to nearest. +1 or -1: always up or down in magnitude by the whole unit roundoff. 0: each way at random.
    order:   of sums: "forward", "backward" or "pairwise"
    fused:   products within sums are not rounded
    flush:   subnormal numbers are zero
    """

    side: int | None
    order: str
    fused: bool
    flush: bool
    rng: np.random.Generator

    def given(self, array: np.ndarray) -> Number:
        """An input."""
        return Number(self._flushed(array.astype(np.float64)), self)

    def constant(self, value: float) -> Number:
        """A number of the formula, rounded as a kernel has it."""
        return Number(np.asarray(float(np.float32(value))), self)

    def total(self, one: np.ndarray, other: np.ndarray) -> Number:
        """A sum of two, which no rounding to nearest moves by more than the smaller of them."""
        return self.kept(one + other, at_most=np.minimum(np.abs(one), np.abs(other)))

    def kept(self, exact: np.ndarray, *, ulp: float = 0.0, at_most: np.ndarray | float = np.inf) -> Number:
        """An exact result as this device has it; of an elementary function, `ulp` is what it may err by."""
        nearest = exact.astype(np.float32).astype(np.float64)
        if self.side is None:
            return Number(self._flushed(nearest), self)
        sides = self.rng.choice([-1.0, 1.0], exact.shape) if self.side == 0 else self.side * np.ones(exact.shape)
        spacing = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
        moved = exact + sides * np.minimum(ulp * spacing if ulp else U * np.abs(exact), at_most)
        held = nearest == exact if not ulp else exact == 0  # what needs no rounding gets none
        return Number(self._flushed(np.where(held | (np.abs(exact) < TINY), nearest, moved)), self)

    def _flushed(self, values: np.ndarray) -> np.ndarray:
        return np.where(np.abs(values) < TINY, 0.0, values) if self.flush else values

    def __str__(self) -> str:
        return f"side {self.side}, {self.order}{', fused' if self.fused else ''}{', flushed' if self.flush else ''}"


def roundings(seed: int = 0) -> list[Rounding]:
    """Kind and unkind ones; each order, fused and flushed in some."""
    rng = np.random.default_rng(seed)
    return [
        Rounding(None, "forward", False, False, rng),
        Rounding(None, "backward", True, True, rng),
        Rounding(None, "pairwise", False, True, rng),
        Rounding(1, "forward", False, False, rng),
        Rounding(-1, "pairwise", False, True, rng),
        Rounding(0, "forward", False, True, rng),
        Rounding(0, "backward", True, False, rng),
    ]


@dataclass(frozen=True, eq=False)
class Number:
    """An array that holds what float32 could."""

    value: np.ndarray
    rounding: Rounding

    def _other(self, other: Number | float) -> np.ndarray:
        return other.value if isinstance(other, Number) else self.rounding.constant(other).value

    def __add__(self, other: Number | float) -> Number:
        return self.rounding.total(self.value, self._other(other))

    def __sub__(self, other: Number | float) -> Number:
        return self.rounding.total(self.value, -self._other(other))

    def __mul__(self, other: Number | float) -> Number:
        right = self._other(other)
        return self.rounding.kept(self.value * right, at_most=_needed(self.value, right))

    def __truediv__(self, other: Number | float) -> Number:
        right = self._other(other)
        return self.rounding.kept(self.value / right, at_most=_needed(right))

    def __neg__(self) -> Number:
        return Number(-self.value, self.rounding)

    def __getitem__(self, index: Any) -> Number:
        return Number(self.value[index], self.rounding)

    def reciprocal(self) -> Number:
        """As declared."""
        return self.rounding.kept(1 / self.value, ulp=ULP)

    def sqrt(self) -> Number:
        """As declared."""
        return self.rounding.kept(np.sqrt(self.value), ulp=ULP)

    def exp(self) -> Number:
        """As declared."""
        return self.rounding.kept(np.exp(self.value), ulp=ULP)

    def sum(self, axis: int = -1) -> Number:
        """In this device's order, the axis kept."""
        terms = np.split(self.value, self.value.shape[axis], axis)
        if self.rounding.order == "pairwise":
            while len(terms) > 1:
                pairs = [self.rounding.total(one, other).value for one, other in zip(terms[::2], terms[1::2], strict=False)]
                terms = pairs + terms[len(terms) // 2 * 2 :]
            return Number(terms[0], self.rounding)
        total, *others = terms[::-1] if self.rounding.order == "backward" else terms
        for term in others:
            total = self.rounding.total(total, term).value
        return Number(total, self.rounding)

    def dot(self, other: Number, axis: int = -1) -> Number:
        """The sum of products, the axis kept."""
        products = self.value * other.value
        if not self.rounding.fused:
            return self.rounding.kept(products).sum(axis)
        first, others = np.split(products, [1], axis)  # a chain of fused multiply-adds begins with a product
        return Number(np.concatenate([self.rounding.kept(first).value, others], axis), self.rounding).sum(axis)

    def matmul(self, other: Number) -> Number:
        """As np.matmul."""
        left = Number(self.value[..., :, None, :], self.rounding)
        return left.dot(Number(other.value.swapaxes(-1, -2)[..., None, :, :], self.rounding))[..., 0]

    def turned(self) -> Number:
        """The last two axes swapped."""
        return Number(self.value.swapaxes(-1, -2), self.rounding)

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> Number:
        """What rounds nothing: a mask, another shape, a copy."""
        return Number(change(self.value), self.rounding)


def _needed(*factors: np.ndarray) -> np.ndarray:
    """0 where one of the factors is a power of two, which rounds nothing; infinite elsewhere."""
    return np.where(np.any(np.broadcast_arrays(*(np.frexp(np.abs(one))[0] == 0.5 for one in factors)), axis=0), 0.0, np.inf)
