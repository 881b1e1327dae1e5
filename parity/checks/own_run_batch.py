"""A user's micro-batches, cut to what the float64 reference can afford: real ids, labels, positions and segments of fewer tokens.

Legend: B sequences, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from contract.data import batches
from contract.data.batches import PADDING
from contract.data.steps import Steps
from contract.errors import UserError
from contract.model.layout import Layout
from contract.worker.graph import IGNORE_INDEX
from contract.worker.plan import GraphPlan
from contract.worker.taps import MIDDLE
from parity.reference.graph import Batch

AFFORDABLE = 3e11
"""Multiply-adds of the reference on one case: of SmolLM2-135M 36 tokens, which take 31 passes of it the better part of a minute."""

RUNS = 31
"""Passes of the reference over a case: an exact one, and those that are perturbed."""

ROWS = 2
"""Rows of a cut batch: enough for one row to be seen in another's place."""

FEWEST = 8
"""Tokens of a row below which too little is left of it, whatever it costs."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A part of a micro-batch, or all of it, and in words which part."""

    batch: Batch
    told: str


def multiply_adds(plan: GraphPlan) -> float:
    """Of one token through one pass, forward and backward with respect to inputs: twice the weights that it is multiplied by."""
    layout: Layout = plan.layout
    shapes = layout.widths
    names: Sequence[str] = layout.linears if plan.graph == "full_causal" else (MIDDLE,)
    inner = plan.blocks * sum(shapes[name][0] * shapes[name][1] for name in names)
    return 2.0 * (inner + layout.vocab_size * layout.hidden_size)


def affordable(plan: GraphPlan) -> int:
    """Tokens of a case: what AFFORDABLE buys, and FEWEST of each row at least."""
    return max(ROWS * FEWEST, int(AFFORDABLE / (RUNS * multiply_adds(plan))))


def first(steps: Steps, tokens: int, count: int) -> tuple[Cut, ...]:
    """The run's first micro-batches, `count` at most, each cut to so many tokens.

    Raises:
        UserError: no row of the run has a token to learn.
    """
    found: list[Cut] = []
    for name, batch in _micro_batches(steps):
        cut_ = cut(batch, tokens)
        found.append(Cut(batch=cut_.batch, told=f"{name}: {cut_.told}"))
        if len(found) == count:
            break
    if not found:
        raise UserError("the contract's rows have no token to learn, so that there is nothing to gate; see: finetune preflight --labels")
    return tuple(found)


def _micro_batches(steps: Steps) -> Iterator[tuple[str, batches.Batch]]:
    for step in steps.steps():
        for number, batch in enumerate(step.batches):
            yield f"micro-batch {number + 1} of step {step.number + 1}", batch


def cut(batch: batches.Batch, tokens: int) -> Cut:
    """At most `tokens` of a micro-batch: its first rows, of each a window in which some labels count.

    Positions and segments go along where rows are packed, or where a window begins within a row: its tokens keep their places. Else they
    are left out, as a run leaves them out.
    """
    rows, width = batch.ids_BT.shape
    packed = bool(batch.segments_BT.max() > 0)
    if rows * width <= tokens:
        return Cut(batch=_part(batch, [0] * rows, width, places=packed), told=f"all of its {rows} x {width} tokens")
    kept = min(rows, ROWS, max(1, tokens // FEWEST))
    length = min(width, tokens // kept)
    starts = [_start(batch, row, length, packed=packed) for row in range(kept)]
    part = _part(batch, starts, length, places=packed or any(starts))
    return Cut(batch=part, told=f"{kept} of {rows} rows, {length} of {width} tokens of each, from token {', '.join(map(str, starts))} on")


def _start(batch: batches.Batch, row: int, length: int, *, packed: bool) -> int:
    """Where a row's window begins: about a border between two packed rows, else about the first label that counts."""
    labels, segments = batch.labels_BT[row], batch.segments_BT[row]
    latest = max(0, int(batch.lengths_B[row]) - length)
    borders = np.flatnonzero((segments[1:] != segments[:-1]) & (segments[1:] != PADDING)) + 1 if packed else ()
    counted = np.flatnonzero(labels[1:] != IGNORE_INDEX) + 1
    for middle in (*borders[:1], counted[0]):
        start = min(max(0, int(middle) - length // 2), latest)
        if np.any((counted > start) & (counted < start + length)):
            return start
    raise AssertionError("a row without a supervised token is in no batch")


def _part(batch: batches.Batch, starts: Sequence[int], length: int, *, places: bool) -> Batch:
    """A window of each of the first rows."""

    def window(array_BT: np.ndarray) -> np.ndarray:
        return np.stack([array_BT[row, start : start + length] for row, start in enumerate(starts)])

    labels_BT = window(batch.labels_BT)
    labels_BT[:, 0] = IGNORE_INDEX  # what would predict it is not in the window
    return Batch(
        ids=window(batch.ids_BT), labels=labels_BT, positions=window(batch.positions_BT) if places else None,
        segments=window(batch.segments_BT) if places else None,
    )  # fmt: skip
