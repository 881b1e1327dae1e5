"""Running error analysis: a value in float64, and how far a correctly computed one may lie from it.

A reference is written once, as its paper has it, on `Computed` numbers. Each operation gives the exact result and a bound on the error
of the computed one: what its operands' errors make of it, and its own rounding (Wilkinson 1963, *Rounding Errors in Algebraic
Processes*; Higham 2002, *Accuracy and Stability of Numerical Algorithms*, section 3.3). No term of second order is dropped. u is the
unit roundoff of the dtype, tiny its smallest normal number: what one operation may lose below it, flushed or gradual.

    computed = exact result of the computed operands, (1 + d) times, |d| <= u, + at most tiny where it may be subnormal
    sums     gamma_(k - 1) on the sum of the absolute values, in any order (Higham 2002, eq. 3.5); products in sums gamma_k
    f(x)     the change of f over x's error, and what the stack declares of f: ulp spacings and an absolute part

A fused multiply-add rounds less often, and stays inside. What is exactly zero with no error stays so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import erf, erfc

from contract.worker.capabilities import Elementary, Function

ULP_IN_U = 2.0
"""One ulp is at most 2 u of its value, for normal numbers."""

LIMIT_IN_U = 2.0**-5
"""tanh and erf are +-1 where they lie within so many u of it, so that 1 + tanh x is 0 there. A rounding to nearest is from u / 2 on;
NumPy's float32 tanh from 0.07 u on, the last of those that were measured."""


@dataclass(frozen=True)
class Arithmetic:
    """One dtype as one stack computes in it: `declared` are its elementary functions' worst errors."""

    dtype: str
    declared: tuple[Elementary, ...] = ()

    @cached_property
    def u(self) -> float:
        """Unit roundoff: half the spacing at 1."""
        return float(np.finfo(self.dtype).eps) / 2

    @cached_property
    def ulp(self) -> float:
        """The most that one ulp is of a normal value; of one that is rounded up to a power of two, 1 + u times as much."""
        return ULP_IN_U * self.u * (1 + self.u)

    @cached_property
    def tiny(self) -> float:
        """The smallest positive normal number."""
        return float(np.finfo(self.dtype).smallest_normal)

    @cached_property
    def largest(self) -> float:
        """The largest finite number."""
        return float(np.finfo(self.dtype).max)

    def given(self, array: np.ndarray) -> Computed:
        """An input: exact, but for a subnormal number, which a device may read as zero."""
        value = array.astype(np.float64)
        return Computed(value, np.where(np.abs(value) < self.tiny, np.abs(value), 0.0), self)

    def exact(self, array: np.ndarray | float) -> Computed:
        """What no stack rounds: a mask, a count, a power of two."""
        value = np.asarray(array, dtype=np.float64)
        return Computed(value, np.zeros(value.shape), self)

    def constant(self, value: float) -> Computed:
        """A number of the formula, rounded once on its way into a kernel; exact where float32 holds it."""
        rounded = 0.0 if float(np.float32(value)) == value else self.u * abs(value)
        return Computed(np.asarray(float(value)), np.asarray(rounded), self)

    def cast(self, host: Computed) -> Computed:
        """A number that the host computed in float64, rounded once on its way into a kernel; exact where float32 holds it."""
        kept = (self.dtype == "float64") | ((host.error == 0) & (host.value.astype(np.float32) == host.value))
        return Computed(host.value, host.error + np.where(kept, 0.0, self.u * host.size), self)

    def power(self, base: float, exponent: Computed) -> Computed:
        """base^exponent, as e^(exponent ln base): a library's own power errs by less; exactly 1 where the exponent is exactly 0."""
        error = (exponent * self.exact(base).log()).exp().error
        return Computed(np.power(base, exponent.value), error, self).where(exponent.size > 0, 1.0)

    def declaration(self, function: Function) -> tuple[float, float]:
        """Worst ulp and absolute part that the stack declares of a function in this dtype.

        Raises:
            ValueError: it declares none.
        """
        found = [(one.ulp, one.absolute) for one in self.declared if (one.function, one.dtype) == (function, self.dtype)]
        if not found:
            raise ValueError(f"the stack declares no error of {function} in {self.dtype}; add it to its capabilities.json")
        return max(ulp for ulp, _ in found), max(absolute for _, absolute in found)


@dataclass(frozen=True, eq=False)
class Computed:
    """value: exact for exact operands, float64; error: the bound on |computed - value|, elementwise, of the same shape."""

    value: np.ndarray
    error: np.ndarray
    arithmetic: Arithmetic

    def __post_init__(self) -> None:
        assert self.value.dtype == self.error.dtype == np.float64, "a reference computes in float64, operation by operation"

    @property
    def shape(self) -> tuple[int, ...]:
        """The array's shape."""
        return self.value.shape

    @property
    def size(self) -> np.ndarray:
        """The largest magnitude that the computed value may have."""
        return np.asarray(np.abs(self.value) + self.error)

    def __add__(self, other: Computed | float) -> Computed:
        right = self._operand(other)
        made = self._made(self.value + right.value, self.error + right.error)
        return made.rounded(at_most=np.minimum(self.size, right.size))

    def __sub__(self, other: Computed | float) -> Computed:
        return self + -self._operand(other)

    def __mul__(self, other: Computed | float) -> Computed:
        right = self._operand(other)
        error = np.abs(self.value) * right.error + self.error * right.size
        return self._made(self.value * right.value, error).rounded()

    def __radd__(self, other: float) -> Computed:
        return self + other

    def __rsub__(self, other: float) -> Computed:
        return -self + other

    def __rmul__(self, other: float) -> Computed:
        return self * other

    def __truediv__(self, other: Computed | float) -> Computed:
        """As a reciprocal and a product, which rounds more often than a division."""
        right, one = self._operand(other), self.arithmetic
        with np.errstate(all="ignore"):
            value = self.value / right.value
            least = np.abs(right.value) - right.error
            error = np.where(least > 0, (self.error + np.abs(value) * right.error) / least, np.inf)
            error = error + one.ulp * one.declaration("reciprocal")[0] * (np.abs(value) + error)
            # a reciprocal below tiny, or of an infinity
            error = error + np.where(right.size > 1 / one.tiny, self.size * one.tiny, 0.0)
            # of what overflows itself, not by its error alone, the quotient lies between 0 and little more than the exact one
            overflows = (right.size > one.largest) & (np.abs(right.value) > one.largest / 2)
            error = np.where(overflows, np.abs(value) + self.size * one.tiny, error)
            zero = (self.value == 0) & (self.error == 0)
        return self._made(np.where(zero, 0.0, value), np.where(zero, 0.0, error)).rounded()

    def __neg__(self) -> Computed:
        return self._made(-self.value, self.error)

    def __getitem__(self, index: Any) -> Computed:
        return self._made(self.value[index], self.error[index])

    def __matmul__(self, other: Computed) -> Computed:
        """Sums of products over the last axis and the one before last, as np.matmul; a product that is exactly zero is no term."""
        left, right = np.abs(self.value), np.abs(other.value)
        operands = left @ other.error + self.error @ other.size
        present = (self.size > 0).astype(np.float64) @ (other.size > 0).astype(np.float64)
        magnitude = left @ right + operands
        error = operands + self._gamma(present) * magnitude + present * self.arithmetic.tiny
        return self._made(self.value @ other.value, error)

    def sum(self, axis: int, *, keepdims: bool = False) -> Computed:
        """The sum along an axis, in any order; what is exactly zero is no term."""
        operands = np.sum(self.error, axis=axis, keepdims=keepdims)
        terms = np.count_nonzero(self.size, axis=axis, keepdims=keepdims)
        magnitude = np.sum(np.abs(self.value), axis=axis, keepdims=keepdims) + operands
        flushed = np.where(terms > 1, terms * self.arithmetic.tiny, 0.0)
        error = operands + self._gamma(np.maximum(terms - 1, 0)) * magnitude + flushed
        return self._made(np.sum(self.value, axis=axis, keepdims=keepdims), error)

    def max(self, axis: int, *, keepdims: bool = False) -> Computed:
        """The largest along an axis."""
        value, error = np.max(self.value, axis=axis, keepdims=keepdims), np.max(self.error, axis=axis, keepdims=keepdims)
        return self._made(value, error)

    def sqrt(self) -> Computed:
        """The square root."""
        root, least, most = (np.sqrt(np.maximum(x, 0.0)) for x in (self.value, self.value - self.error, self.value + self.error))
        apart = np.divide(self.error, root + least, out=np.zeros_like(root), where=root + least > 0)
        # of an operand that may be 0: down to 0, or up
        return self._function("sqrt", root, np.where(least > 0, apart, np.maximum(root, most - root)))

    def exp(self) -> Computed:
        """e^x; where it overflows its error is infinite, and only a division by it has a bound again."""
        with np.errstate(all="ignore"):
            value = np.exp(self.value)
            # e^(x + error) - e^x; and an e^x that float64 has no number for is not 0
            change = np.where(self.error > 0, np.exp(self.value + self.error) * -np.expm1(-self.error), 0.0)
            change = np.where((value == 0) & np.isfinite(self.value), np.finfo(np.float64).smallest_subnormal, change)
        return self._function("exp", value, change)

    def log(self) -> Computed:
        """ln x of positive x."""
        with np.errstate(all="ignore"):
            change = np.where(self.error < self.value, -np.log1p(-self.error / self.value), np.inf)
        return self._function("log", np.log(self.value), change)

    def tanh(self) -> Computed:
        """tanh x; its slope is 1 - tanh^2."""
        nearest = np.maximum(np.abs(self.value) - self.error, 0.0)
        change = self.error * (1 - np.tanh(nearest) ** 2)
        return self._function("tanh", np.tanh(self.value), change)._limited(2 * np.exp(-2 * nearest))

    def erf(self) -> Computed:
        """erf x; its slope is 2 / sqrt(pi) e^(-x^2)."""
        nearest = np.maximum(np.abs(self.value) - self.error, 0.0)
        change = self.error * (2 / np.sqrt(np.pi)) * np.exp(-nearest * nearest)
        return self._function("erf", erf(self.value), change)._limited(erfc(nearest))

    def sin(self) -> Computed:
        """sin x; its slope is at most 1."""
        return self._function("sin", np.sin(self.value), self.error)

    def cos(self) -> Computed:
        """cos x; its slope is at most 1."""
        return self._function("cos", np.cos(self.value), self.error)

    def where(self, mask: np.ndarray, otherwise: float = 0.0) -> Computed:
        """The value where `mask` holds, an exact number elsewhere."""
        return self._made(np.where(mask, self.value, otherwise), np.where(mask, self.error, 0.0))

    def rounded(self, times: int = 1, *, at_most: np.ndarray | float = np.inf) -> Computed:
        """So many roundings more: where legal implementations differ, the one that rounds most often counts.

        Args:
            at_most: what one rounding errs by at most, beside underflow. A sum rounded to nearest errs by no more than its smaller
                operand, since the larger one is a number too (Shewchuk 1997, lemma 1); 1 + e is 1 where e is tiny.
        """
        one, value, error = self.arithmetic, self.value, self.error
        with np.errstate(all="ignore"):
            for _ in range(times):
                size = np.abs(value) + error
                below = (size > 0) & (np.abs(value) - error < one.tiny)
                error = error + np.minimum(one.u * size, at_most) + np.where(below, one.tiny, 0.0)
                error = np.where(np.abs(value) + error > one.largest, np.inf, error)
        return self._made(value, error)

    def either(self, other: Computed) -> Computed:
        """The same exact value by another legal formula: the larger error."""
        return self._made(self.value, np.maximum(self.error, other.error))

    def clipped(self, low: float, high: float) -> Computed:
        """Within [low, high]; what surely lies outside is the end itself, exactly."""
        surely = (self.value + self.error <= low) | (self.value - self.error >= high)
        return self._made(np.clip(self.value, low, high), np.where(surely, 0.0, np.minimum(self.error, high - low)))

    def capped(self, largest: float | np.ndarray) -> Computed:
        """A value whose computed counterpart can't err by more, as one that lies in [0, 1]."""
        return self._made(self.value, np.minimum(self.error, largest))

    def reshape(self, *shape: int) -> Computed:
        """As np.reshape."""
        return self._made(self.value.reshape(shape), self.error.reshape(shape))

    def swapaxes(self, first: int, second: int) -> Computed:
        """As np.swapaxes."""
        return self._made(self.value.swapaxes(first, second), self.error.swapaxes(first, second))

    @classmethod
    def concatenate(cls, parts: Iterable[Computed], axis: int) -> Computed:
        """As np.concatenate."""
        listed = list(parts)
        value, error = (np.concatenate(arrays, axis=axis) for arrays in ([one.value for one in listed], [one.error for one in listed]))
        return cls(value, error, listed[0].arithmetic)

    def _function(self, function: Function, value: np.ndarray, change: np.ndarray) -> Computed:
        """f of the computed operand lies within `change` of `value`, and what is declared of f beside that."""
        one = self.arithmetic
        ulp, absolute = one.declaration(function)
        with np.errstate(all="ignore"):
            size = np.abs(value) + change
            error = change + one.ulp * ulp * size + np.where(size > 0, absolute, 0.0)
            error = error + np.where((size > 0) & (np.abs(value) - change < one.tiny), one.tiny, 0.0)
            error = np.where(np.isnan(error) | (size > one.largest), np.inf, error)
        return self._made(value, error)

    def _limited(self, gap: np.ndarray) -> Computed:
        """A function that tends to +-1, of which `gap` is left: computed as +-1 itself where the gap is less than any rounding."""
        return self._made(self.value, np.where(gap <= LIMIT_IN_U * self.arithmetic.u, gap, self.error))

    def _gamma(self, terms: np.ndarray) -> np.ndarray:
        """gamma_k = k u / (1 - k u) (Higham 2002, lemma 3.1)."""
        ku = terms * self.arithmetic.u
        return np.asarray(np.where(ku < 1, ku / np.maximum(1 - ku, self.arithmetic.u), np.inf))

    def _operand(self, other: Computed | float) -> Computed:
        return other if isinstance(other, Computed) else self.arithmetic.constant(other)

    def _made(self, value: np.ndarray, error: np.ndarray) -> Computed:
        shape = np.broadcast_shapes(np.shape(value), np.shape(error))
        return Computed(np.broadcast_to(value, shape), np.broadcast_to(error, shape), self.arithmetic)


_NUMPY_ULP: dict[Function, float] = {"exp": 1, "log": 1, "sqrt": 0.5, "reciprocal": 0.5, "tanh": 2, "erf": 3, "sin": 1, "cos": 1}
"""What NumPy's and SciPy's functions err by; tests/parity/reference/test_running_error.py verifies it."""

REFERENCE = Arithmetic(
    "float64",
    tuple(
        Elementary(function=function, dtype="float64", low=-np.inf, high=np.inf, ulp=ulp, absolute=0)
        for function, ulp in _NUMPY_ULP.items()
    ),
)
"""The references' own arithmetic: their error is added to a stack's."""
