"""One tensor held against what it must be.

A comparison passes or fails by componentwise |observed - expected| <= limit; NaN never passes. It also
carries the outcome of its negative controls, so that it is trusted only if it can fail.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from parity.judge import controls
from parity.judge.bounds import Bound

Passes = Callable[[np.ndarray], bool]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The verdict on one tensor.

    observed and bound are those of the component (or row) with the least head-room, which stands at `where` with the value
    `got` in `wanted`'s place; `unit` says what they count; `relative` is the largest relative difference of any row. `place` is the
    tensor's full name, where `tensor` stands for several.
    """

    tensor: str
    passed: bool
    observed: float
    bound: float
    unit: str
    bound_source: str
    where: tuple[int, ...] | None
    controls: controls.Outcome
    got: float | None = None
    wanted: float | None = None
    relative: float | None = None
    place: str = ""

    @property
    def headroom(self) -> float | None:
        """bound / observed: how many times larger the difference could be; None where nothing was observed."""
        return None if self.observed == 0 else self.bound / self.observed

    @property
    def ratio(self) -> float:
        """observed / bound; 0 of two zeros, and infinite where a bound of 0 is exceeded or NaN was observed."""
        if self.observed == 0:
            return 0.0
        return self.observed / self.bound if self.bound > 0 and self.observed == self.observed else float("inf")


def within(
    tensor: str, observed: np.ndarray, expected: np.ndarray, bound: Bound, *, unit: str = "absolute difference", special: bool = False
) -> Comparison:
    """Every component of `observed` lies within `bound.limit` of `expected`.

    special: where `expected` is infinite or NaN, `observed` must be so too, of the same sign; otherwise one NaN fails.

    Raises:
        ValueError: a limit that is not finite, where the value is: everything would pass it.
    """
    _require_elements(tensor, observed)
    expected, observed64 = np.asarray(expected, dtype=np.float64), observed.astype(np.float64)
    limit = np.where(np.isfinite(expected), np.broadcast_to(bound.limit, expected.shape), 0.0)
    if not np.isfinite(limit).all():
        raise ValueError(f"{tensor}: a limit is not finite, so nothing could be judged by it; do the values leave the dtype's range?")

    def difference(candidate: np.ndarray) -> np.ndarray:
        return _difference(candidate.astype(np.float64), expected, special=special)

    def passes(candidate: np.ndarray) -> bool:
        return bool(np.all(difference(candidate) <= limit))

    def surely_wrong(candidate: np.ndarray) -> bool:
        return bool(np.any(_difference(candidate.astype(np.float64), observed64, special=special) > 2 * limit))

    error = difference(observed)
    where = _least_headroom(error, limit)
    return Comparison(
        tensor=tensor, passed=passes(observed), observed=float(error[where]), bound=float(limit[where]),
        unit=unit, bound_source=bound.source, where=where, got=float(observed64[where]), wanted=float(expected[where]),
        controls=controls.run(passes, observed, surely_wrong=surely_wrong, just_above=_just_above(observed64, expected, limit)),
    )  # fmt: skip


def _difference(one: np.ndarray, other: np.ndarray, *, special: bool) -> np.ndarray:
    """|one - other|; where `special`, 0 for two of the same infinity or two NaN, and infinity where only one is such."""
    with np.errstate(invalid="ignore"):
        difference: np.ndarray = np.abs(one - other)
    if special:
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        difference = np.where(same, 0.0, np.where(np.isfinite(one) & np.isfinite(other), difference, np.inf))
    return difference


def root_mean_square(tensor: str, observed: np.ndarray, expected: np.ndarray, scale: np.ndarray, limit: float, source: str) -> Comparison:
    """The root mean square of (observed - expected) / scale lies within `limit`."""
    _require_elements(tensor, observed)

    def measure(candidate: np.ndarray, centre: np.ndarray = expected) -> float:
        return float(np.sqrt(np.mean(((candidate.astype(np.float64) - centre) / scale) ** 2)))

    observed64 = observed.astype(np.float64)
    value = measure(observed)
    return Comparison(
        tensor=f"{tensor} (root mean square)", passed=value <= limit, observed=value, bound=limit,
        unit="root mean square of error / scale", bound_source=source, where=None,
        controls=controls.run(
            lambda candidate: measure(candidate) <= limit, observed,
            surely_wrong=lambda candidate: measure(candidate, observed64) > 2 * limit,
            just_above=expected + scale * limit * (1 + 2.0**-20),
        ),
    )  # fmt: skip


def rows(tensor: str, observed: np.ndarray, expected: np.ndarray, limit: np.ndarray, source: str) -> Comparison:
    """The L2 norm of each row's difference (a row is the last axis) lies within the row's limit.

    A limit of 0 asks for exact equality: where the structure says zero, nothing else will do.

    Args:
        limit: [the tensor's shape without its last axis].

    Raises:
        ValueError: a limit that is not finite, which everything would pass.
    """
    _require_elements(tensor, observed)
    if not np.isfinite(limit).all():
        raise ValueError(f"{tensor}: a limit is not finite, so nothing could be judged by it; do the model's values leave float64's range?")
    expected, observed64 = np.asarray(expected, dtype=np.float64), observed.astype(np.float64, copy=False)
    error, size = _norms(observed64 - expected), _norms(expected)
    row = _least_headroom(error, limit)
    element = int(np.nanargmax(np.abs(observed64[row] - expected[row]))) if np.isfinite(error[row]) else 0
    relative = np.divide(error, size, out=np.where(error > 0, np.inf, 0.0), where=size > 0)
    return Comparison(
        tensor=tensor, passed=bool(np.all(error <= limit)), observed=float(error[row]), bound=float(limit[row]),
        unit="L2 norm of a row's difference", bound_source=source, where=(*row, element),
        got=float(observed64[row][element]), wanted=float(expected[row][element]), relative=float(np.max(relative)),
        controls=_controls_of_rows(observed64, expected, limit),
    )  # fmt: skip


def _controls_of_rows(observed: np.ndarray, expected: np.ndarray, limit: np.ndarray) -> controls.Outcome:
    """On the leading rows alone: each row is judged by itself, and controls change no more than these."""
    width = observed.shape[-1]
    count = -(-controls.WINDOW // width)
    observed, expected = (array.reshape(-1, width)[:count] for array in (observed, expected))
    limit = limit.reshape(-1)[:count]
    return controls.run(
        lambda candidate: bool(np.all(_norms(candidate - expected) <= limit)), observed,
        surely_wrong=lambda candidate: bool(np.any(_norms(candidate - observed) > 2 * limit)),
        just_above=_just_above(expected, expected, limit[:, None]),
    )  # fmt: skip


def identical(tensor: str, observed: np.ndarray, expected: np.ndarray, source: str) -> Comparison:
    """Bit for bit the same, signs of zeros included; a NaN fails even where both have it."""
    _require_elements(tensor, observed)
    bits = _bits(expected)

    def passes(candidate: np.ndarray) -> bool:
        return bool(np.array_equal(_bits(candidate), bits)) and not np.isnan(candidate).any()

    one_bit_off = observed.copy()
    one_bit_off.reshape(-1).view(np.uint8)[0] ^= 1
    differing = (_bits(observed) != bits) | np.isnan(observed)
    where = _first(differing.reshape(observed.shape)) if differing.any() else None
    return Comparison(
        tensor=tensor, passed=passes(observed), observed=float(np.count_nonzero(differing)), bound=0.0,
        unit="elements that differ", bound_source=source, where=where,
        got=None if where is None else float(observed[where]), wanted=None if where is None else float(expected[where]),
        controls=controls.run(
            passes, observed, surely_wrong=lambda candidate: not np.array_equal(_bits(candidate), _bits(observed)), just_above=one_bit_off
        ),
    )  # fmt: skip


def at_most(tensor: str, observed: float, bound: float, unit: str, source: str) -> Comparison:
    """A single number is at most a bound (no tensor behind it, so its one control is the number just above)."""
    caught = not float(np.nextafter(bound, np.inf)) <= bound
    return Comparison(
        tensor=tensor, passed=observed <= bound, observed=observed, bound=bound, unit=unit, bound_source=source, where=None,
        controls=controls.Outcome(applied=1, caught=int(caught), missed=() if caught else ("just above",)),
    )  # fmt: skip


_SQUARES_ARE_NORMAL = 2.0**-500
"""Elements of this size and above have squares that no underflow reaches."""


def _norms(array: np.ndarray) -> np.ndarray:
    """L2 norm of each row; those whose squares may underflow or overflow are scaled first."""
    norms: np.ndarray = np.sqrt(np.einsum("...i,...i->...", array, array))
    doubtful = ~((norms >= _SQUARES_ARE_NORMAL) & (norms < np.inf))
    if doubtful.any():
        rows_of = array[doubtful]
        largest = np.abs(rows_of).max(axis=-1, keepdims=True)
        with np.errstate(invalid="ignore"):  # infinite over infinite is NaN, and NaN passes nothing
            norms[doubtful] = np.linalg.norm(rows_of / np.where(largest > 0, largest, 1.0), axis=-1) * largest[..., 0]
    return norms


def _least_headroom(error: np.ndarray, limit: np.ndarray) -> tuple[int, ...]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error == 0, 0.0, error / limit)
    ratio = np.where(np.isnan(ratio), np.inf, ratio)
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(ratio)), ratio.shape))


def _first(differing: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(differing)), differing.shape))


def _just_above(observed: np.ndarray, expected: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """The observed tensor with its first element whose expected value is finite moved to the first float64 past its bound.

    Where no expected value is finite, any finite number is past it. The way leads from zero: towards it the numbers lie ever closer, and
    where the bound is as large as the value there are more of them than can be tried before their difference to it changes.
    """
    first = int(np.argmax(np.isfinite(expected)))
    centre, allowed = float(expected.reshape(-1)[first]), float(np.broadcast_to(limit, expected.shape).reshape(-1)[first])
    outwards = np.copysign(np.inf, centre)
    wrong = centre + float(np.copysign(allowed, centre)) if np.isfinite(centre) else 0.0
    while np.isfinite(centre) and abs(wrong - centre) <= allowed:
        wrong = float(np.nextafter(wrong, outwards))
    moved = observed.copy()
    moved.reshape(-1)[first] = wrong
    return moved


def _require_elements(tensor: str, observed: np.ndarray) -> None:
    if observed.size == 0:
        raise ValueError(f"{tensor}: a comparison of empty tensors proves nothing; draw at least one element")


def _bits(tensor: np.ndarray) -> np.ndarray:
    tensor = np.ascontiguousarray(tensor)
    return tensor.view(np.dtype(f"u{tensor.dtype.itemsize}"))
