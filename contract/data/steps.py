"""A run's optimiser steps: which examples each one learns from, in which micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np

from contract.data.batches import Batch, collate, supervised
from contract.data.order import RowOrder
from contract.data.packing import packed
from contract.data.row import Example
from contract.run.schedule import optimizer_steps

_AHEAD = 4096
"""Positions whose rows are looked up at a time."""

_TOGETHER = 256
"""Rows that are made into examples at a time, where only their lengths are wanted."""

Examples = Callable[[Sequence[int]], Sequence[Example | None]]
"""The examples of rows by their numbers in the index, in that order; None where nothing of a row is to be learned."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimiser step.

    number: from 0, over all epochs. skipped: rows of this step without a supervised token, which are in no batch.
    tokens: supervised tokens of all micro-batches, which the loss' sum is divided by; 0 only where every row was skipped, and
        batches is then empty: such a step has a learning rate and no update.
    """

    number: int
    epoch: int
    batches: tuple[Batch, ...]
    tokens: int
    skipped: tuple[int, ...]


class Steps:
    """The optimiser steps of a run, from its beginning or from any step: the same ones either way.

    Micro-batches have batch_size sequences, an epoch's last one what is left; grad_accum of them form a step, an epoch's trailing ones a
    step of their own. A row that is skipped leaves its place empty, so that the others keep theirs.

    With packing, an epoch's rows are packed in its own order. How many sequences that makes depends on the rows' lengths, which is why
    every row is made into an example once before the first step; the lengths take 4 bytes a row.
    """

    def __init__(
        self, order: RowOrder, examples: Examples, *, batch_size: int, grad_accum: int, epochs: int, pad_id: int, seq_len: int,
        max_steps: int | None = None, packing: bool = False, pad_to: Literal["longest", "seq_len"] = "longest",
        progress: Progress = lambda done, total: None,
    ) -> None:  # fmt: skip
        """`max_steps`: the run ends there. `pad_to`: the width of each micro-batch, its longest sequence's or seq_len. `progress`: told
        rows made into examples, and all of them, where packing needs every row's length."""
        self._order, self._examples = order, examples
        self._batch_size, self._grad_accum, self._epochs = batch_size, grad_accum, epochs
        self._pad_id, self._seq_len, self._max_steps = pad_id, seq_len, max_steps
        self._width = seq_len if pad_to == "seq_len" else None
        self._lengths = _lengths(order, examples, progress) if packing else None
        self._counts: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Steps of the whole run: what the learning rate's schedule is over."""
        whole = sum(map(self.in_epoch, range(self._epochs)))
        return whole if self._max_steps is None else min(whole, self._max_steps)

    def in_epoch(self, epoch: int) -> int:
        """Steps of an epoch; with packing they may differ from one to the next."""
        if epoch not in self._counts:
            sequences = self._order.count if self._lengths is None else sum(1 for _ in self._packed(epoch, self._lengths, []))
            self._counts[epoch] = optimizer_steps(sequences, self._batch_size, self._grad_accum, 1)
        return self._counts[epoch]

    def steps(self, start: int = 0) -> Iterator[Step]:
        """The steps from number `start` on."""
        return islice(self._all(start), None if self._max_steps is None else max(self._max_steps - start, 0))

    def _all(self, start: int) -> Iterator[Step]:
        before = 0
        for epoch in range(self._epochs):
            count = self.in_epoch(epoch)
            first = max(start - before, 0)
            if first < count:
                for number, (sequences, skipped) in enumerate(self._rows(epoch, first), before + first):
                    yield self._step(number, epoch, sequences, skipped)
            before += count

    def _rows(self, epoch: int, first: int) -> Iterator[tuple[list[tuple[int, ...]], list[int]]]:
        """The rows of each step of an epoch from its step `first` on, sequence by sequence, and those that were skipped."""
        size = self._batch_size * self._grad_accum
        if self._lengths is None:
            for start in range(first * size, self._order.count, size):
                rows = self._order.rows(epoch, np.arange(start, min(start + size, self._order.count)))
                yield [(row,) for row in rows.tolist()], []
            return
        skipped: list[int] = []
        sequences = self._packed(epoch, self._lengths, skipped)
        for at in range(self.in_epoch(epoch)):
            step = list(islice(sequences, size))
            if at >= first:
                yield step, skipped.copy()
            skipped.clear()

    def _packed(self, epoch: int, lengths: np.ndarray, skipped: list[int]) -> Iterator[tuple[int, ...]]:
        """An epoch's packed sequences of rows; rows that have no example go to `skipped`."""

        def there() -> Iterator[int]:
            for row in _in_order(self._order, epoch):
                if lengths[row]:
                    yield row
                else:
                    skipped.append(row)

        return packed(there(), lambda row: int(lengths[row]), self._seq_len)

    def _step(self, number: int, epoch: int, sequences: list[tuple[int, ...]], skipped: list[int]) -> Step:
        rows = [row for sequence in sequences for row in sequence]
        found = dict(zip(rows, _learned(self._examples, rows), strict=True))
        skipped = skipped + [row for row in rows if found[row] is None]
        batches = []
        for start in range(0, len(sequences), self._batch_size):
            micro = [[found[row] for row in sequence] for sequence in sequences[start : start + self._batch_size]]
            filled = [examples for sequence in micro if (examples := [example for example in sequence if example is not None])]
            if filled:
                batches.append(collate(filled, self._pad_id, width=self._width))
        tokens = sum(batch.tokens for batch in batches)
        return Step(number=number, epoch=epoch, batches=tuple(batches), tokens=tokens, skipped=tuple(skipped))


def _in_order(order: RowOrder, epoch: int) -> Iterator[int]:
    """The rows of an epoch."""
    for start in range(0, order.count, _AHEAD):
        yield from order.rows(epoch, np.arange(start, min(start + _AHEAD, order.count))).tolist()


def _learned(examples: Examples, rows: Sequence[int]) -> list[Example | None]:
    """The rows' examples; None where no token of a row would carry loss."""
    found = examples(rows)
    assert all(example is None or example.sample == row for row, example in zip(rows, found, strict=True))
    return [example if example is not None and supervised(example) else None for example in found]


def _lengths(order: RowOrder, examples: Examples, progress: Progress) -> np.ndarray:
    """Tokens of each row's example, int32 by row; 0 where it has none."""
    lengths = np.zeros(max(_in_order(order, 0), default=-1) + 1, np.int32)
    rows, done = _in_order(order, 0), 0
    while some := list(islice(rows, _TOGETHER)):
        done += len(some)
        lengths[some] = [0 if example is None else len(example.ids) for example in _learned(examples, some)]
        progress(done, order.count)
    return lengths
