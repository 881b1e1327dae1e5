"""Where stacks evaluate each elementary function, and where its hard points lie: one entry a function.

Points are even over a core, even over the magnitudes, next to places where implementations change over or where the function is
near a zero, and the ends, subnormal numbers among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from contract.worker.capabilities import Function

Places = Callable[[np.ndarray, float, float], np.ndarray]
"""(numbers in [0, 1), low, high of the range) -> float64 places: the same share of all that there are."""

FAR = 1e-6
"""Half of the points at a place lie within 3 ulp of it, the others within this relative distance."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """One function's arguments.

    ranges:  dtype -> (low, high), which a stack must declare; a dtype that is missing is not asked
    core:    where points lie evenly
    places:  near which points lie densely
    centre:  about which the magnitudes are even
    normal:  whether subnormal arguments are left out
    special: finite arguments beside 0 whose results are infinite, NaN or of a sign of their own
    """

    ranges: Mapping[str, tuple[float, float]]
    core: tuple[float, float]
    places: Places
    centre: float = 0.0
    normal: bool = False
    special: tuple[float, ...] = ()


def _listed(*places: float) -> Places:
    """These places, and their negatives."""
    both = np.array([*places, *(-place for place in places)])
    return lambda unit, low, high: both[(unit * both.size).astype(np.int64)]


def _steps(step: float) -> Places:
    """The multiples of a step in the range."""

    def places(unit: np.ndarray, low: float, high: float) -> np.ndarray:
        first, last = np.ceil(low / step), np.floor(high / step)
        return np.asarray((first + np.floor(unit * (last - first + 1))) * step)

    return places


def _powers(base: float) -> Places:
    """The powers of a base in the range's positive part, and their negatives where it has such."""

    def places(unit: np.ndarray, low: float, high: float) -> np.ndarray:
        first = np.ceil(np.log(max(low, float(np.finfo(np.float32).smallest_normal))) / np.log(base))
        exponents = first + np.floor(unit * (np.floor(np.log(high) / np.log(base)) - first + 1))
        signs = np.where((np.arange(unit.size) % 2 == 1) & (low < 0), -1.0, 1.0)
        return np.asarray(signs * base**exponents)

    return places


_HALF_PI_HEAD = float.fromhex("0x1.921fb544p+0")
_HALF_PI_TAIL = float.fromhex("0x1.0b4611a626331p-34")
"""pi / 2 as a number of 33 bits, whose multiples by up to 2^20 are exact, and the rest."""


def _quarter_turns(unit: np.ndarray, low: float, high: float) -> np.ndarray:
    """Multiples of pi / 4 rounded to float64: zeros of sin and cos, and where a reduction changes over; the first 64 in every other."""
    last = np.floor(high / (_HALF_PI_HEAD / 2)) - 1
    count = np.where(np.arange(unit.size) % 2 == 0, 64.0, last)
    half_turns = np.floor(unit * count) / 2
    return np.asarray(half_turns * _HALF_PI_HEAD + half_turns * _HALF_PI_TAIL)


def _both(low: float, high: float) -> Mapping[str, tuple[float, float]]:
    return {"float32": (low, high), "float64": (low, high)}


LINE = {"float32": (-3.4e38, 3.4e38), "float64": (-1.79e308, 1.79e308)}
POSITIVE = {dtype: (0.0, high) for dtype, (_, high) in LINE.items()}
LONGEST = 2.0**20
"""RoPE's largest angle: the frequency 1 at the longest position."""

DOMAINS: Mapping[Function, Domain] = {
    "exp": Domain(
        ranges={"float32": (-104.0, 88.7), "float64": (-746.0, 709.7)}, core=(-746.0, 709.7), places=_steps(np.log(2) / 2),
        special=(-1e4, 1e4),
    ),
    "log": Domain(ranges=_both(1.0, 1e6), core=(1.0, 1e6), places=_powers(2**0.5), centre=1.0, special=(-1.0, -1e-30)),
    "sqrt": Domain(ranges=POSITIVE, core=(0.0, 100.0), places=_powers(2.0), special=(-1.0, -1e-30)),
    "reciprocal": Domain(ranges=LINE, core=(-10.0, 10.0), places=_powers(2.0), normal=True, special=(-1.0,)),
    "tanh": Domain(
        ranges=LINE, core=(-23.0, 23.0), special=(-1e4, 1e4),
        places=_listed(2.0**-55, 2.0**-28, 2.0**-12, 4e-4, 0.25, 0.549306, 0.625, 1.0, 2.0, 8.66434, 9.010913, 19.0615, 20.1, 22.0),
    ),
    "erf": Domain(
        ranges=LINE, core=(-7.0, 7.0), special=(-1e4, 1e4),
        places=_listed(2.0**-56, 2.0**-28, 2.0**-12, 0.46875, 0.5, 0.84375, 1.0, 1.25, 2.0, 1 / 0.35, 3.83, 3.92, 4.0, 5.86, 5.92, 6.0),
    ),
    "sin": Domain(ranges={"float64": (0.0, LONGEST)}, core=(0.0, LONGEST), places=_quarter_turns, special=(-1.0,)),
    "cos": Domain(ranges={"float64": (0.0, LONGEST)}, core=(0.0, LONGEST), places=_quarter_turns, special=(-1.0,)),
}  # fmt: skip
"""exp: down to where it underflows (cross-entropy, softmax), up to where it overflows (SiLU). log: of a sum of 1 to V terms of at
most 1. sqrt and reciprocal: any number, reciprocal of normal ones. tanh, erf: any number; the places are where fdlibm's and Cody's
pieces meet, and where the result rounds to 1. sin, cos: RoPE's angles, on the host in float64."""


def points(function: Function, dtype: str, count: int, rng: np.random.Generator, *, grid: bool = False) -> np.ndarray:
    """Arguments of a function in the range of the dtype, drawn, or as a fixed grid."""
    domain, limits = DOMAINS[function], np.finfo(dtype)
    low, high = domain.ranges[dtype]
    third = count // 3

    def spread(size: int) -> np.ndarray:
        return (np.arange(size) + 0.5) / size if grid else rng.random(size)

    core_low, core_high = max(low, domain.core[0]), min(high, domain.core[1])
    even = core_low + spread(count - 2 * third) * (core_high - core_low)
    smallest = domain.centre * limits.eps or limits.smallest_subnormal
    lowest, highest = np.log10(smallest), np.log10(max(-low, high) - domain.centre)
    magnitudes = 10.0 ** (lowest + spread(third) * (highest - lowest))
    signs = np.where((np.arange(third) % 2 == 1) & (low < 0), -1.0, 1.0) if high > 0 else -1.0
    places = domain.places(spread(third), low, high).astype(dtype)
    close = places + (rng.integers(-3, 4, third) * np.spacing(np.abs(places))).astype(dtype)
    far = places * (1 + FAR * rng.uniform(-1, 1, third))
    near = np.where(np.arange(third) // 2 % 2 == 0, close, far)
    made = np.concatenate([_ends(low, high, core_low, core_high, limits), even, domain.centre + signs * magnitudes, near])[:count]
    made = np.clip(made.astype(dtype), np.asarray(low, dtype=dtype), np.asarray(high, dtype=dtype))
    normal = np.copysign(limits.smallest_normal, made)
    return np.asarray(np.where(domain.normal & (np.abs(made) < limits.smallest_normal), normal, made))


def _ends(low: float, high: float, core_low: float, core_high: float, limits: np.finfo[Any]) -> np.ndarray:
    """The ends of the range and of its core, and 0, the subnormal numbers' ends, the smallest normal number, where they are in it."""
    subnormal, normal = float(limits.smallest_subnormal), float(limits.smallest_normal)
    ends = [low, high, core_low, core_high, 0.0, *(sign * one for one in (subnormal, normal - subnormal, normal) for sign in (1, -1))]
    return np.array([end for end in ends if low <= end <= high])
