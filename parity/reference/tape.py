"""What one section's evaluation carries: taps on the way forward, cotangents on the way back, overrides of both kinds.

Arrays have a leading axis of runs (legend: P), of length 1 while nothing has told the runs apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from parity.reference.rounding import Mixed, Noise, Size, none, once, parts, sum_of, summed, together

Kind = Literal["tap", "bar", "grad"]
See = Callable[[Kind, str, np.ndarray], None]
"""Is shown every tap, every total cotangent of a tap and every gradient when it is computed: its kind, its own name, its value."""


class Tape:
    """One evaluation of one section (`block` of contract/worker/graph.py).

    overrides: what takes a tap's place for all that follows from it; bars: given cotangents of taps, as computed.
    """

    def __init__(
        self, section: str, noise: Noise, see: See, *, overrides: Mapping[str, np.ndarray], bars: Mapping[str, np.ndarray]
    ) -> None:
        self.noise = noise
        self._section = section
        self._see = see
        self._overrides = overrides
        self._bars = dict(bars)
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._flows: dict[str, list[tuple[np.ndarray, Size]]] = {}

    def near(self, site: str, value: np.ndarray, size: Size) -> np.ndarray:
        """A value inside an operation, with that operation's error."""
        return self.noise(f"{self._section}/{site}", value, size)

    def tap(self, name: str, value: np.ndarray, size: Size) -> np.ndarray:
        """Shows a tap with its operation's error; answers what follows has to use, the tap or its override."""
        value = self.near(name, value, size)
        self._see("tap", name, value)
        self._shapes[name] = value.shape
        return self._overrides.get(name, value)

    def give(self, name: str, bar: np.ndarray) -> None:
        """Gives a tap's cotangent that comes from outside of the section."""
        self._bars[name] = bar

    def enter(self, value: np.ndarray) -> np.ndarray:
        """The section's residual input, so that cotangents can flow to it."""
        self._shapes["input"] = value.shape
        return value

    def flow(self, name: str, bar: np.ndarray, size: Size = none) -> None:
        """One consumer's share of the cotangent of what stands at a tap's place."""
        self._flows.setdefault(name, []).append((bar, size))

    def flow_together(self, name: str, *shares: tuple[np.ndarray, Size]) -> None:
        """What one operation sends to a tap in several shares; where what is stored is narrower, as their sum, rounded once."""
        if not self.noise.mixed:
            for share, size in shares:
                self.flow(name, share, size)
            return
        total = shares[0][0]
        for share, _ in shares[1:]:
            total = total + share
        self.flow(name, total, lambda: once(together(*(parts(size()).inside for _, size in shares)), total))

    def bar(self, name: str) -> np.ndarray:
        """The total cotangent of a tap as computed: its consumers' shares, unless an override stands in its place, and the given one."""
        shares = self._flows.pop(name, [])
        if name in self._overrides:
            self._see("grad", name, self._total(f"grad.{name}", name, shares))
            shares = []
        if name in self._bars:
            shares = [*shares, (self._bars[name], none)]
        total = self._total(f"bar.{name}", name, shares)
        self._see("bar", name, total)
        return total

    def leave(self) -> np.ndarray:
        """The gradient with respect to the section's residual input."""
        total = self._total("grad.input", "input", self._flows.pop("input", []))
        self._see("grad", "input", total)
        return total

    def grad(self, name: str, value: np.ndarray, size: Size) -> None:
        """Shows the gradient of an adapter matrix."""
        self._see("grad", name, self.near(f"grad.{name}", value, size))

    def _total(self, site: str, name: str, shares: list[tuple[np.ndarray, Size]]) -> np.ndarray:
        if not shares:
            return np.zeros((1, *self._shapes[name][1:]))
        total = shares[0][0]
        for share, _ in shares[1:]:
            total = total + share

        def size() -> Mixed:
            squares = np.sum(np.stack([np.square(share) for share, _ in shares]), axis=0)
            additions, own = summed(total, squares, len(shares)), [parts(of_share()) for _, of_share in shares]
            return Mixed(
                alone=together(additions, *(one.alone for one in own)), inside=together(*(one.inside for one in own)),
                stored=together(additions, *(one.stored for one in own)),
                most=sum_of(_largest_sums(total, [share for share, _ in shares]), *(one.most for one in own)),
                after=len(shares) - 1 + max(one.after for one in own),
            )  # fmt: skip

        return self.near(site, total, size)


def _largest_sums(total: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    """What the partial sums' absolute values, the total's among them, add up to at most, in any order."""
    if len(shares) == 1:
        return np.zeros(())
    largest: np.ndarray = np.abs(total) + (len(shares) - 2) * sum_of(*shares)
    return largest
