"""A curriculum by difficulty: easier rows first, in every epoch, in constant memory.

The rows are sorted once, in runs that fit in memory and are then merged, into a file beside the index. Rows of one difficulty stand
next to each other there; an epoch permutes each such group by itself, from the seed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO, Literal

import numpy as np

from contract.data import philox, sealed
from contract.data.index import RowIndex
from contract.data.order import Permutation, RowOrder, Shuffled, Split
from contract.errors import ContractError
from contract.run.spec import DataSpec

_RUN = 2**18
"""Rows that are held in memory at a time: some 20 MB of working arrays."""

_WIDTH = 16
"""Bytes a row takes in the file: all difficulties (float64), then all row numbers (int64)."""


def training_order(index: RowIndex, spec: DataSpec, split: Split, seed: int) -> RowOrder:
    """The order in which a run learns from the rows that are not held back.

    Raises:
        ContractError: a curriculum by difficulty, and no row has one.
        EnvironmentUnfit: the cache folder can't be written.
    """
    return EasiestFirst(index, split, seed) if spec.curriculum == "difficulty" else Shuffled(split, seed)


class EasiestFirst:
    """The rows to learn from by rising difficulty; those of one difficulty in another order each epoch.

    Rows without a difficulty come last, as those of which nothing says that they are easy.

    Attributes:
        without: how many they are.
    """

    def __init__(self, index: RowIndex, split: Split, seed: int) -> None:
        """Sorts, or finds what was sorted before.

        Raises:
            ContractError, EnvironmentUnfit: as `training_order`.
        """
        self.count, self._seed = split.training, seed
        file = index.file.with_name(f"{index.file.stem}-{seed}-{split.validation}.order")
        of = {"source": list(index.source), "rows": index.kept, "count": self.count}

        if sealed.summary_of(file, of.__eq__) is None:
            with sealed.writing(file) as writer:
                _sort(index, split, writer)
                writer.finish(of)
        self._difficulty, self._row = _halves(file, self.count)
        self.without = self.count - int(np.searchsorted(self._difficulty, np.inf))
        if self.without == self.count:
            allowed = "'none', or rows with a number as their difficulty"
            raise ContractError(
                "data.curriculum", got="'difficulty', and no row has one", allowed=allowed, remedy="choose 'none', or add it"
            )

    def rows(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """As RowOrder."""
        difficulty = self._difficulty[positions]
        first, end = (np.searchsorted(self._difficulty, difficulty, side) for side in ("left", "right"))
        places = positions.astype(np.int64)
        for start in np.unique(first[end - first > 1]):
            group = first == start
            size = int(end[group][0] - start)
            key = philox.key_of("difficulty", self._seed, epoch, start)
            places[group] = start + Permutation(size, key).at(places[group] - start)
        rows: np.ndarray = self._row[places]
        return rows


def _halves(file: Path | IO[bytes], count: int, mode: Literal["r", "r+"] = "r") -> tuple[np.ndarray, np.ndarray]:
    difficulty = np.memmap(file, np.dtype("<f8"), mode, shape=(count,))
    return difficulty.view(np.ndarray), np.memmap(file, np.dtype("<i8"), mode, offset=8 * count, shape=(count,)).view(np.ndarray)


def _sort(index: RowIndex, split: Split, writer: sealed.Writer) -> None:
    """Writes the difficulties and numbers of the rows to learn from, by difficulty: a merge sort from runs, in two files."""
    count = split.training
    folder: Path = index.file.parent
    with tempfile.TemporaryFile(dir=folder) as one, tempfile.TemporaryFile(dir=folder) as other:
        for scratch in (one, other):
            for start in range(0, count, _RUN):  # a hole in a mapped file would end the process where the disk is full
                scratch.write(bytes(_WIDTH * min(_RUN, count - start)))
            scratch.flush()
        source, target = _halves(one, count, "r+"), _halves(other, count, "r+")
        for start in range(0, count, _RUN):
            rows = split.training_rows(np.arange(start, min(start + _RUN, count)))
            known = index.difficulty[rows]
            difficulty = np.where(np.isnan(known), np.inf, known)
            ranks = np.argsort(difficulty, kind="stable")
            source[0][start : start + _RUN], source[1][start : start + _RUN] = difficulty[ranks], rows[ranks]
        run = _RUN
        while run < count:
            for start in range(0, count, 2 * run):
                _merge(source, target, start, min(start + run, count), min(start + 2 * run, count))
            source, target, run = target, source, 2 * run
        for half in source:
            for start in range(0, count, _RUN):
                writer.add(half[start : start + _RUN].tobytes())


def _merge(source: tuple[np.ndarray, np.ndarray], target: tuple[np.ndarray, np.ndarray], start: int, middle: int, end: int) -> None:
    """Merges two sorted runs that stand side by side; of equal difficulties the first run's come first."""
    runs = slice(start, middle), slice(middle, end)
    for own, other, side in ((*runs, "left"), (*reversed(runs), "right")):
        for at in range(own.start, own.stop, _RUN):
            part = slice(at, min(at + _RUN, own.stop))
            before = np.searchsorted(source[0][other], source[0][part], side)
            places = start + np.arange(part.start, part.stop) - own.start + before
            target[0][places], target[1][places] = source[0][part], source[1][part]
