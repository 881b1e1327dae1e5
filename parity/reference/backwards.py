"""A pass from the last section to the first, in the memory of a few residual streams and one section.

A backward pass needs each section's input. Those that are not kept are computed again from the nearest one that is: of a run of sections
the middle's input is kept while its second half is gone through, and so on down, so that L sections take log2(L) kept inputs at a time and
L / 2 log2(L) sections computed again (Griewank 1992, *Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
differentiation*).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

import numpy as np

from contract.worker.graph import POSITIONS, ROPE_TABLES, SEGMENTS
from contract.worker.plan import GraphPlan
from contract.worker.taps import EMBEDDING, HEAD, entering, sections
from parity.reference.graph import Batch, Oracle, Trace

Tensors = dict[str, np.ndarray]


def backwards(oracle: Oracle, plan: GraphPlan, batch: Batch) -> Iterator[tuple[str, Trace]]:
    """Each section with what it is given: its input, the cotangent of the next one's, RoPE's tables; head first, embedding last.

    Args:
        oracle: without noise.
        plan: the oracle's.
    """
    return _Pass(oracle, plan, batch).sections()


class _Pass:
    """One pass; the blocks are numbered from 0."""

    def __init__(self, oracle: Oracle, plan: GraphPlan, batch: Batch) -> None:
        self._oracle, self._batch = oracle, batch
        self._blocks, self._last = sections(plan.blocks)[1:-1], "embedding" if plan.graph == "qlora_proxy_v1" else entering(plan.layout)
        given = batch.tensors()
        self._places = {name: given[name] for name in (POSITIONS, SEGMENTS) if name in given}

    def sections(self) -> Iterator[tuple[str, Trace]]:
        ids = {name: array for name, array in self._batch.tensors().items() if name in ("ids", POSITIONS)}
        opened = self._oracle.section(EMBEDDING, ids)
        tables = {name: opened[name] for name in ROPE_TABLES if name in opened}
        first = opened[self._last]
        del opened
        last = self._forward(first, 0, len(self._blocks))
        ending = {"input": last, "labels": self._batch.labels, "bar.loss": np.ones(())}
        ending |= {name: array for name, array in self._places.items() if name == SEGMENTS}
        bar = self._oracle.section(HEAD, ending)["grad.input"]
        yield HEAD, Trace(taps=tables, inputs={HEAD: last})
        del last, ending
        bar = yield from self._between(first, bar, 0, len(self._blocks), tables)
        yield EMBEDDING, Trace(taps=tables, input_bars={self._after(-1): bar})

    def _between(
        self, start: np.ndarray, bar: np.ndarray, low: int, high: int, tables: Mapping[str, np.ndarray]
    ) -> Generator[tuple[str, Trace], None, np.ndarray]:
        """The blocks from high - 1 down to low, `start` the input of the first and `bar` the cotangent of the last one's output; answers
        that of `start`.
        """
        if high == low:
            return bar
        if high - low == 1:
            section = self._blocks[low]
            yield section, Trace(taps=dict(tables), inputs={section: start}, input_bars={self._after(low): bar})
            return self._oracle.section(section, {"input": start, "bar.output": bar, **self._places})["grad.input"]
        middle = (low + high) // 2
        bar = yield from self._between(self._forward(start, low, middle), bar, middle, high, tables)
        return (yield from self._between(start, bar, low, middle, tables))

    def _forward(self, x: np.ndarray, low: int, high: int) -> np.ndarray:
        for section in self._blocks[low:high]:
            x = self._oracle.section(section, {"input": x, **self._places})["output"]
        return x

    def _after(self, block: int) -> str:
        """The section that follows a block; -1: the embedding."""
        return (*self._blocks, HEAD)[block + 1]
