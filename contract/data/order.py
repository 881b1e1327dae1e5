"""In which order a run meets its rows: from the seed, in constant memory, by position.

An order is a function of a position, so that a run that is resumed in the middle starts there, and ten million rows need no table.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from contract.data import philox

_ROUNDS = 10
"""As many as NIST SP 800-38G gives FF1, which ciphers small domains in the same way."""

_FEWEST_BITS = 4
"""A half has two bits at least: every function of one bit is affine."""


class RowOrder(Protocol):
    """What a run walks through in each epoch."""

    @property
    def count(self) -> int:
        """Rows of an epoch."""

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The rows (numbers in the index, int64 [n]) at positions of an epoch (integers [n], 0 to count - 1)."""


class Permutation:
    """A bijection of 0, ..., count - 1, from a key.

    A Feistel network (Luby & Rackoff 1988) on numbers of b bits, 2^b > count, whose round function is Philox4x32-10:
    (L, R) -> (R, L ^ F(round, R)), where the halves differ in length by a bit if b is odd, as in FF1. Where it leaves 0, ...,
    count - 1 it is applied again until it comes back (cycle-walking; Black & Rogaway 2002, "Ciphers with arbitrary finite domains"):
    twice on average at most, from eight rows on.

    Such a network is always an even permutation of its 2^b numbers, whatever its rounds, as block ciphers are. So where nearly all of
    them are rows, nearly all orders have one parity; of three rows each order is met within 3 % of equally often, of four within 9 %.
    """

    def __init__(self, count: int, key: philox.Key) -> None:
        assert count >= 0
        self.count = count
        self._key = key
        bits = max(_FEWEST_BITS, count.bit_length())
        self._bits = bits - bits // 2, bits // 2

    def at(self, positions: np.ndarray) -> np.ndarray:
        """int64 [n] for integers [n], each 0 to count - 1."""
        assert not positions.size or 0 <= positions.min() <= positions.max() < self.count
        values = self._network(positions.astype(np.int64))
        outside = np.flatnonzero(values >= self.count)
        while outside.size:
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.count]
        return values

    def _network(self, values: np.ndarray) -> np.ndarray:
        bits = self._bits
        left, right = values >> bits[1], values & (2 ** bits[1] - 1)
        counter = np.zeros((len(values), 4), np.uint32)
        for number in range(_ROUNDS):
            counter[:, 0], counter[:, 1] = right, number  # a half has 32 bits at most
            left, right = right, left ^ (philox.words(counter, self._key)[:, 0].astype(np.int64) & (2 ** bits[number % 2] - 1))
        joined: np.ndarray = left << bits[1] | right  # the number of rounds is even, so that the halves have their lengths back
        return joined


class Split:
    """Rows to learn from and rows that are held back, chosen by the seed: the same in every epoch.

    floor(share * count) rows are held back, one at least where the share is positive and there are two rows; never all.
    """

    def __init__(self, count: int, share: float, seed: int) -> None:
        assert count >= 1
        assert 0 <= share < 1
        held = max(math.floor(share * count), 1) if share and count > 1 else 0
        self.validation = min(held, count - 1)
        self.training = count - self.validation
        self._chosen = Permutation(count, philox.key_of("validation", seed))

    def training_rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows (int64 [n]) at positions (integers [n]) 0 to training - 1."""
        # Without rows held back the index's own numbers do, at no cost.
        return self._chosen.at(positions + self.validation) if self.validation else positions.astype(np.int64)

    def validation_rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows (int64 [n]) at positions (integers [n]) 0 to validation - 1."""
        assert not positions.size or positions.max() < self.validation
        return self._chosen.at(positions)


class Shuffled:
    """The rows to learn from, in another order each epoch."""

    def __init__(self, split: Split, seed: int) -> None:
        self.count = split.training
        self._split, self._seed = split, seed

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """As RowOrder."""
        return self._split.training_rows(Permutation(self.count, philox.key_of("order", self._seed, epoch)).at(positions))


class HeldBack:
    """The rows that are held back, in the same order whenever they are met."""

    def __init__(self, split: Split) -> None:
        self.count = split.validation
        self._split = split

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """As RowOrder."""
        return self._split.validation_rows(positions)
